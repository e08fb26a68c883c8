"""The native CPU backend: `engine.cpp` and what it includes, compiled on first use and cached.

A C++ compiler (`$CXX`, or c++, g++ or clang++) builds it in seconds for this very processor; without one, or with
`ZOO_NATIVE=0`, the backend is not available, one line in the log says so, and plain torch takes its place.
"""

import atexit
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zoo.kernels import loops, pointwise
from zoo.kernels.untraced import has_memory
from zoo.noise import Cell, Noise

_SOURCES = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-shared", "-fPIC")
_THIS_PROCESSOR = ("-march=native",), ("-mcpu=native",), ()
"""As one compiler or another knows it, or does not."""
_LOG = logging.getLogger(__name__)


class _Mask(ctypes.Structure):
    """`Mask` of arguments.h."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("kind", "time", "gate", "batch", "unit")),
    ]


class _Arguments(ctypes.Structure):
    """`Arguments` of arguments.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("time", "batch", "width", "hidden", "threads", "keep", "per_gate")),
        *(
            (name, ctypes.c_void_p)
            for names in (
                ("inputs", "h", "c", "w_input", "w_hidden", "bias"),
                ("gates", "outputs", "cells", "doutputs", "dcells"),
                ("dh", "dc", "dinputs", "dw_input", "dw_hidden", "dbias"),
            )
            for name in names
        ),
        ("masks", _Mask * len(Noise._fields)),
        *((name, ctypes.c_int64) for name in ("norm", "population", "narrow")),
        ("eps", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for names in (
                (
                    "gain_hidden",
                    "gain_cell",
                    "bias_cell",
                    "narrow_inputs",
                    "narrow_weights",
                    "normal_hidden",
                    "normal_cell",
                ),
                ("hidden_mean", "hidden_var", "cell_mean", "cell_var"),
                ("dgain_hidden", "dgain_cell", "dbias_cell", "dnarrow_weights"),
            )
            for name in names
        ),
    ]


class Loops(loops.Loops):
    """The LSTM's loops in native code, the products with the inputs included; the other cells' in plain torch.

    With `bfloat16` the factors of float32 products are rounded to it where the processor multiplies such numbers.
    """

    def __init__(self, bfloat16: bool = False) -> None:
        super().__init__(pointwise)
        self._bfloat16 = bfloat16

    def lstm(
        self,
        inputs: Tensor,
        h: Tensor,
        c: Tensor,
        w_input: Tensor,
        w_hidden: Tensor,
        bias: Tensor | None,
        noise: Noise,
        keep: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        time, batch, hidden_size = *inputs.shape[:2], h.shape[-1]
        gates = inputs.new_empty(time, batch, 4 * hidden_size)
        outputs = inputs.new_empty(time, batch, hidden_size)
        cells = inputs.new_empty(time if keep else 1, batch, hidden_size)
        given = {"h": h, "c": c, "w_input": w_input, "w_hidden": w_hidden, "bias": bias}
        written = {"outputs": outputs, "cells": cells}
        _call("lstm_forward", inputs, gates, given, written, noise, {"keep": keep}, self._bfloat16)
        return gates, outputs, cells

    def lstm_backward(
        self,
        gates: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        cells: Tensor,
        h: Tensor,
        c: Tensor,
        w_input: Tensor,
        w_hidden: Tensor,
        noise: Noise,
        doutputs: Tensor | None,
        dcells: Tensor | None,
        dh: Tensor,
        dc: Tensor,
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        given: dict[str, Tensor | None] = {
            "outputs": outputs,
            "cells": cells,
            "h": h,
            "c": c,
            "w_input": w_input,
            "w_hidden": w_hidden,
        }
        given |= {"doutputs": doutputs, "dcells": dcells}
        made = [
            inputs.new_empty(shape) if need else None
            for shape, need in zip(
                (inputs.shape, w_input.shape, w_hidden.shape, w_hidden.shape[:1]), needed, strict=True
            )
        ]
        written = dict(zip(("dinputs", "dw_input", "dw_hidden", "dbias"), made, strict=True))
        written |= {"dh": dh, "dc": dc}
        _call("lstm_backward", inputs, gates, given, written, noise, bfloat16=self._bfloat16)
        return made[0], made[1], made[2], made[3]


class Narrow(NamedTuple):
    """The inputs' part of the gates where the inputs are narrow: [x, 1] W(t), taken within the step."""

    inputs: Tensor
    """(T, B, I)"""
    weights: Tensor
    """(T, I + 1, 4 H)"""


class Normalised(NamedTuple):
    """What the normalised LSTM's forward pass leaves for the backward pass."""

    gates: Tensor
    """Open, (T, B, 4 H)."""
    outputs: Tensor
    cells: Tensor
    hidden: Tensor
    """R h(t-1) normalised, (T, B, 4 H)."""
    cell: Tensor
    """c' normalised, (T, B, H)."""
    hidden_mean: Tensor
    """Over the batch (T, 4 H); by layer unused."""
    hidden_var: Tensor
    """Over the batch (T, 4 H); by layer the reciprocal deviation, (T, B)."""
    cell_mean: Tensor
    cell_var: Tensor


Kind = Literal["batch", "layer"]
_NORMS: dict[Kind, int] = {"batch": 1, "layer": 2}
_GAINS = ("gain_hidden", "gain_cell", "bias_cell")


def normalised(
    projected: Tensor | Narrow,
    h: Tensor,
    c: Tensor,
    w_hidden: Tensor,
    gains: Sequence[Tensor],
    noise: Noise,
    kind: Kind,
    eps: float,
    population: Sequence[Tensor] | None,
    bfloat16: bool,
) -> Normalised:
    """`zoo.kernels.normalised.LSTM` forward; a `projected` of (T, B, 4 H) becomes the gates.

    `gains` are those of the hidden product and of the cell, and the cell's shift; `population` the means and variances of
    both, to be taken in place of the batch's.
    """
    hidden_size = h.shape[-1]
    if isinstance(projected, Narrow):
        narrow, gates = projected, h.new_empty(*projected.inputs.shape[:2], 4 * hidden_size)
    else:
        narrow, gates = None, projected
    time, batch, width = gates.shape
    made = [gates.new_empty(time, batch, size) for size in (hidden_size, hidden_size, width, hidden_size)]
    if population is not None:
        moments = [moment.contiguous() for moment in population]
    else:
        sizes = (width, width, hidden_size, hidden_size) if kind == "batch" else 4 * (batch,)
        moments = [gates.new_empty(time, size) for size in sizes]
    left = Normalised(gates, *made, *moments)
    given, numbers = _normalised_arguments(
        kind, eps, population is not None, gains, narrow, h=h, c=c, w_hidden=w_hidden
    )
    _call("normalised_forward", gates, gates, given, _buffers(left), noise, numbers, bfloat16)
    return left


def normalised_backward(
    left: Normalised,
    narrow: Narrow | None,
    h: Tensor,
    c: Tensor,
    w_hidden: Tensor,
    gains: Sequence[Tensor],
    noise: Noise,
    kind: Kind,
    eps: float,
    population: bool,
    bfloat16: bool,
    doutputs: Tensor | None,
    dcells: Tensor | None,
    dh: Tensor,
    dc: Tensor,
    learns: bool,
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The gradients of the inputs' part (`left.gates`, or the weights of `narrow`), of R if it `learns`, and of `gains`."""
    given, numbers = _normalised_arguments(kind, eps, population, gains, narrow, h=h, c=c, w_hidden=w_hidden)
    given |= {"doutputs": doutputs, "dcells": dcells}
    made = [torch.empty_like(gain, memory_format=torch.contiguous_format) for gain in gains]
    written: dict[str, Tensor | None] = {f"d{name}": gain for name, gain in zip(_GAINS, made, strict=True)}
    dw = w_hidden.new_empty(w_hidden.shape) if learns else None
    written |= {"dh": dh, "dc": dc, "dw_hidden": dw}
    dprojected = left.gates
    if narrow:
        dprojected = torch.zeros_like(narrow.weights, memory_format=torch.contiguous_format)
        written["dnarrow_weights"] = dprojected
    _call("normalised_backward", left.gates, left.gates, given, _buffers(left) | written, noise, numbers, bfloat16)
    return dprojected, dw, made


def _normalised_arguments(
    kind: Kind, eps: float, population: bool, gains: Sequence[Tensor], narrow: Narrow | None, **given: Tensor | None
) -> tuple[dict[str, Tensor | None], dict[str, float]]:
    """The tensors and the numbers that both passes are given."""
    numbers = {"norm": _NORMS[kind], "population": population, "eps": eps, "width": 0}
    given |= dict(zip(_GAINS, gains, strict=True))
    if narrow:
        given |= {"narrow_inputs": narrow.inputs, "narrow_weights": narrow.weights}
        numbers["narrow"] = narrow.inputs.shape[-1]
    return given, numbers


def _buffers(left: Normalised) -> dict[str, Tensor]:
    names = {"hidden": "normal_hidden", "cell": "normal_cell"}
    return {names.get(name, name): value for name, value in left._asdict().items() if name != "gates"}


def available() -> bool:
    """Whether the native code is there; builds it where it can be built."""
    return _library() is not None


def multiplies_bfloat16() -> bool:
    """Whether the native code is there, and built for a processor that multiplies such numbers (AVX512-BF16)."""
    return hasattr(_library(), "lstm_forward_bfloat16")


def can_run(cell: Cell, inputs: Tensor) -> bool:
    """Whether there are native loops for this cell, device and dtype."""
    fits = cell == "lstm" and inputs.device.type == "cpu" and inputs.dtype in (torch.float32, torch.float64)
    return fits and available()


def bernoulli(seed: int, threshold: int, shape: tuple[int, ...]) -> Tensor:
    """`zoo.kernels.draws.hashed_bernoulli` in native code."""
    out = torch.empty(shape, dtype=torch.bool, device="cpu")
    _library().bernoulli(  # type: ignore[union-attr]  # called where it is available
        ctypes.c_uint64(seed),
        ctypes.c_uint64(threshold),
        ctypes.c_int64(out.numel()),
        ctypes.c_int64(torch.get_num_threads()),
        ctypes.c_void_p(out.data_ptr()),
    )
    return out


def _call(
    name: str,
    inputs: Tensor,
    gates: Tensor,
    given: Mapping[str, Tensor | None],
    written: Mapping[str, Tensor | None],
    noise: Noise,
    numbers: Mapping[str, float] = {},
    bfloat16: bool = False,
) -> None:
    """Runs a function of the library on tensors it reads and tensors, contiguous, that it writes."""
    (time, batch, width), gate_width = inputs.shape, gates.shape[-1]
    per_gate = noise.rec is not None and noise.rec.ndim == 4
    arguments = _Arguments(time, batch, width, gate_width // 4, torch.get_num_threads(), True, per_gate)
    for field, number in numbers.items():
        setattr(arguments, field, number)
    held = {
        tensor: None if value is None else value.contiguous() for tensor, value in {"inputs": inputs, **given}.items()
    }
    held |= {"gates": gates, **written}
    for tensor, value in held.items():
        if value is not None and not has_memory(value):
            raise ValueError(f"native code reads memory, and {tensor}, a {type(value).__name__}, has none of its own")
        setattr(arguments, tensor, None if value is None else value.data_ptr())
    # Units side by side, or alike.
    masks = [m if m is None or m.shape[-1] == 1 or m.stride(-1) == 1 else m.contiguous() for m in noise]
    for site, mask in enumerate(masks):
        if mask is None:
            continue
        steps = [0 if size == 1 else stride for size, stride in zip(mask.shape, mask.stride(), strict=True)]
        if mask.ndim == 3:
            steps.insert(1, 0)
        arguments.masks[site] = _Mask(mask.data_ptr(), 2 if mask.dtype == torch.bool else 1, *steps)
    rounded = bfloat16 and inputs.dtype == torch.float32 and multiplies_bfloat16()
    kind = "bfloat16" if rounded else str(inputs.dtype).removeprefix("torch.")
    if not getattr(_library(), f"{name}_{kind}")(ctypes.byref(arguments)):
        raise MemoryError(
            f"no memory for the workspace of a recurrent layer, inputs {tuple(inputs.shape)}; take a smaller batch"
        )


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("ZOO_NATIVE") == "0":
        _LOG.info("native recurrent code is switched off by ZOO_NATIVE=0")
        return None
    try:
        library = _built()
        try:
            return ctypes.CDLL(str(library))
        except OSError:  # a damaged file, or one for an OpenMP that is gone
            library.unlink(missing_ok=True)
            return ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:  # RuntimeError: no home directory
        said = str(getattr(error, "stderr", None) or "").strip() or str(error)
        lines = said.splitlines()
        cause = next((line for line in lines if "error" in line), lines[-1])
        _LOG.warning("no native recurrent code, plain torch runs instead: %s", cause)
        return None


def _built() -> Path:
    """The compiled library, from the cache where the source, the compiler, the processor and torch are the same."""
    found = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise OSError("no C++ compiler found (set CXX, or install g++ or clang++)")
    compiler = shlex.split(found)
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    sources = "".join(file.read_text(encoding="utf-8") for file in sorted(_SOURCES.glob("*.[ch]*")))
    parts = (sources, version, _processor(), torch.__version__, str((_FLAGS, _THIS_PROCESSOR)), sys.platform)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    library = _cache() / f"native-{key}.so"
    if not library.exists():
        library = _writable(library.parent) / library.name
        with tempfile.TemporaryDirectory(dir=library.parent) as aside:
            for other in library.parent.glob("tmp*/"):
                with suppress(FileNotFoundError):  # its build ended
                    if os.stat(aside).st_mtime - other.stat().st_mtime > 3600:  # its build was killed
                        shutil.rmtree(other, ignore_errors=True)
            built = Path(aside) / library.name
            _compile(compiler, built)
            with built.open("rb") as file:
                os.fsync(file.fileno())  # a library cut short by a crash of the machine would kill every later process
            os.replace(built, library)
    return library


def _compile(compiler: list[str], output: Path) -> None:
    """With torch's own OpenMP, whose threads it then shares; without any where the compiler has none."""
    openmp = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    failures = []
    for threads, tuned in product((["-fopenmp", *map(str, openmp)], []), _THIS_PROCESSOR):
        try:
            command = [*compiler, *_FLAGS, *tuned, str(_SOURCES / "engine.cpp"), *threads, "-o", str(output)]
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        except subprocess.CalledProcessError as error:
            failures.append(error)
            continue
        if not threads:
            _LOG.warning("native recurrent code runs on one thread: %s cannot build it with OpenMP", compiler[0])
        return
    raise failures[-1]  # with no option that a compiler may not have


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


def _writable(folder: Path) -> Path:
    """The folder or, where nothing can be written there, one of this process's own."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    own = Path(tempfile.mkdtemp(prefix="recurrent-zoo-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "recurrent-zoo"
