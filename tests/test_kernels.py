"""Every backend against the reference: results, final state and all gradients."""

import os
import platform
import re
import shutil
import subprocess
import sys
from inspect import Parameter, signature
from itertools import product
from typing import NamedTuple

import pytest
import torch
from rounding import RoundedProduct, relative, rounded_recurrent
from torch import Tensor, nn

from tests.conftest import ROOT
from zoo import GRU, LSTM, RNN, Zoneout, functional, kernels
from zoo.functional import Weights
from zoo.kernels import draws, native
from zoo.noise import GATES, SITES, Noise

needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler for the native backend")
BACKENDS = ["torch", pytest.param("native", marks=needs_native)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
ODD_SIZES = [(1, 3, 4, 7), (13, 3, 5, 7)]
MORE_SIZES = [
    (3, 17, 1, 33),
    (2, 41, 9, 65),
    (60, 9, 2, 16),
    (2, 3, 70, 270),
    (70, 25, 3, 5),
]  # tails, chunks, panels, sums
VARIANTS = {
    "lstm": [{}],
    "gru": [{"reset_after": True}, {"reset_after": False}],
    "rnn": [{"nonlinearity": "tanh"}, {"nonlinearity": "relu"}],
}
PER_GATE = "rec, one mask a gate"


def cases():
    for cell, variants in VARIANTS.items():
        sites = [(), *((site,) for site in SITES[cell]), (PER_GATE,), SITES[cell], (PER_GATE, *SITES[cell][1:])]
        for variant, some in product(variants, sites):
            name = "-".join([cell, *map(str, variant.values()), *(some or ("plain",))])
            yield pytest.param(cell, variant, some, id=name)


class Problem(NamedTuple):
    inputs: Tensor
    state: tuple[Tensor, ...]
    weights: Weights

    @property
    def leaves(self):
        return [self.inputs, *self.state, *(value for value in self.weights if value is not None)]


def problem(cell, sizes, dtype=torch.float64, biases=2):
    time, batch, inputs, hidden = sizes
    torch.manual_seed(sum(sizes))
    gates = GATES[cell] * hidden
    shapes = [(gates, inputs), (gates, hidden), *biases * [(gates,)]]

    def draw(*shape):
        return torch.randn(shape, dtype=dtype).requires_grad_()

    state = tuple(draw(batch, hidden) for _ in range(2 if cell == "lstm" else 1))
    weights = Weights(*((draw(*shape) / shape[-1] ** 0.5).detach().requires_grad_() for shape in shapes))
    return Problem(draw(time, batch, inputs), state, weights)


def noise_on(cell, sites, sizes, dtype=torch.float64):
    """Masks of every kind of broadcasting, numbers and bool."""
    time, batch, _, hidden = sizes
    generator = torch.Generator().manual_seed(1)
    shapes = [(time, batch, hidden), (1, batch, hidden), (time, batch, 1), (time, 1, hidden), (1, 1, 1)]
    masks = {}
    for turn, site in enumerate(sites):
        shape = shapes[(turn + SITES[cell].index(site.split(",")[0])) % len(shapes)]
        if site == PER_GATE:
            site, shape = "rec", (shape[0], GATES[cell], *shape[1:])
        values = torch.rand(shape, generator=generator, dtype=dtype)
        masks[site] = values < 0.6 if turn % 2 and values.numel() > 7 else values * 1.5
    return Noise(**masks)


def run(cell, given, noise, backend, **variant):
    """Everything that comes out, the cells of an LSTM too."""
    state = given.state if cell == "lstm" else given.state[0]
    if cell == "lstm":
        cells = backend != "vendor"
        result = kernels.lstm(given.inputs, state, given.weights, noise, cells=cells, backend=backend)
        return [result.outputs, *result.state, *([result.cells] if cells else [])]
    return list(getattr(kernels, cell)(given.inputs, state, given.weights, noise, backend=backend, **variant))


def with_gradients(results, leaves):
    generator = torch.Generator().manual_seed(2)
    loss = sum((value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum() for value in results)
    return [*results, *torch.autograd.grad(loss, leaves)]


def same(cell, sizes, sites, backend, dtype, biases=2, threads=1, **variant):
    given = problem(cell, sizes, dtype, biases)
    noise = noise_on(cell, sites, sizes, dtype)
    count = 3 if backend == "vendor" else 4  # which knows no cells
    expected = with_gradients(run(cell, given, noise, "reference", **variant)[:count], given.leaves)
    torch.set_num_threads(threads)
    try:
        ours = with_gradients(run(cell, given, noise, backend, **variant)[:count], given.leaves)
    finally:
        torch.set_num_threads(1)
    for theirs in expected:
        assert theirs.norm() > 0
    torch.testing.assert_close(ours, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("cell", "variant", "sites"), [*cases()])
def test_every_noise(cell, variant, sites, backend):
    if backend == "native" and cell != "lstm":
        pytest.skip(f"no native {cell}")
    for sizes, dtype in product(ODD_SIZES, TOLERANCE):
        same(cell, sizes, sites, backend, dtype, **variant)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", MORE_SIZES, ids=str)
@needs_native
def test_native_on_other_sizes_and_threads(sizes, threads):
    for sites, dtype in product([(), SITES["lstm"], (PER_GATE, "upd", "hkeep")], TOLERANCE):
        same("lstm", sizes, sites, "native", dtype, threads=threads)


@pytest.mark.parametrize("backend", ["vendor", *BACKENDS])
@pytest.mark.parametrize(("biases", "cell"), [*product([0, 1, 2], VARIANTS)])
def test_biases_two_one_or_none(cell, biases, backend):
    if backend == "native" and cell != "lstm":
        pytest.skip(f"no native {cell}")
    same(cell, (5, 3, 4, 7), (), backend, torch.float64, biases, **VARIANTS[cell][0])


@pytest.mark.parametrize("backend", ["vendor", *BACKENDS])
@pytest.mark.parametrize(("dtype", "tolerance"), [*TOLERANCE.items()])
def test_equals_torch_without_noise(backend, dtype, tolerance):
    given = problem("lstm", (13, 3, 5, 7), dtype)
    theirs = nn.LSTM(5, 7, dtype=dtype)
    with torch.no_grad():
        for parameter, value in zip(theirs.parameters(), given.weights, strict=True):
            parameter.copy_(value)
    outputs, final = theirs(given.inputs, tuple(part.unsqueeze(0) for part in given.state))
    results = [outputs, *(part.squeeze(0) for part in final)]
    expected = with_gradients(results, [given.inputs, *given.state, *theirs.parameters()])
    ours = with_gradients(run("lstm", given, Noise(), backend)[:3], given.leaves)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", range(7))
def test_each_gradient_alone(needed, backend):
    given = problem("lstm", (5, 3, 4, 7))
    noise = noise_on("lstm", SITES["lstm"], (5, 3, 4, 7))
    for position, leaf in enumerate(given.leaves):
        leaf.requires_grad_(position == needed)
    expected, ours = (
        with_gradients(run("lstm", given, noise, name), given.leaves[needed]) for name in ("reference", backend)
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("given_up", ["outputs", "h", "c", "cells"])
def test_each_result_alone(given_up, backend):
    given = problem("lstm", (5, 3, 4, 7))
    noise = noise_on("lstm", SITES["lstm"], (5, 3, 4, 7))
    position = ["outputs", "h", "c", "cells"].index(given_up)
    gradients = []
    for name in ("reference", backend):
        result = run("lstm", given, noise, name)[position]
        gradients.append(torch.autograd.grad(result.square().sum(), given.leaves, allow_unused=True))
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", [*VARIANTS])
def test_gradients_are_slopes(cell, backend):
    if backend == "native" and cell != "lstm":
        pytest.skip(f"no native {cell}")
    sizes = (3, 2, 2, 3)
    given, noise = problem(cell, sizes), noise_on(cell, SITES[cell], sizes)

    def value(leaves):
        states = 1 + len(given.state)
        moved = Problem(leaves[0], tuple(leaves[1:states]), Weights(*leaves[states:]))
        generator = torch.Generator().manual_seed(2)
        return sum(
            (result * torch.randn(result.shape, generator=generator, dtype=result.dtype)).sum()
            for result in run(cell, moved, noise, backend)
        )

    # torch.autograd.gradcheck goes through one graph many times, which these do not allow.
    gradients = torch.autograd.grad(value(given.leaves), given.leaves)
    for position, gradient in enumerate(gradients):
        for element in range(gradient.numel()):
            moved = []
            for step in (1e-6, -1e-6):
                leaves = [leaf.detach().clone() for leaf in given.leaves]
                leaves[position].view(-1)[element] += step
                moved.append(value(leaves))
            slope = (moved[0] - moved[1]) / 2e-6
            torch.testing.assert_close(gradient.reshape(-1)[element], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_may_be_cut(backend):
    sizes = (13, 3, 5, 7)
    given, noise = problem("lstm", sizes), noise_on("lstm", SITES["lstm"], sizes)
    whole = run("lstm", given, noise, backend)
    outputs, state = [], given.state
    for part in (slice(0, 5), slice(5, 13)):
        masks = Noise(*(mask[part] if len(mask) > 1 else mask for mask in noise))
        out, *state, _ = run("lstm", Problem(given.inputs[part], tuple(state), given.weights), masks, backend)
        outputs.append(out)
    torch.testing.assert_close([torch.cat(outputs), *state], whole[:3], rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [*TOLERANCE])
def test_without_gradients(backend, dtype):
    given = problem("lstm", (13, 9, 5, 20), dtype)
    for sites in ((), SITES["lstm"]):
        noise = noise_on("lstm", sites, (13, 9, 5, 20), dtype)
        with_graph = run("lstm", given, noise, backend)
        with torch.no_grad():
            assert [
                torch.equal(a, b) for a, b in zip(run("lstm", given, noise, backend), with_graph, strict=True)
            ] == 4 * [True]
            short = kernels.lstm(*given, noise, backend=backend)
        assert short.cells is None
        torch.testing.assert_close([short.outputs, *short.state], with_graph[:3], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", [*VARIANTS])
def test_a_second_backward_pass_raises(cell, backend):
    if backend == "native" and cell != "lstm":
        pytest.skip(f"no native {cell}")
    outputs = run(cell, problem(cell, (5, 3, 4, 7)), Noise(), backend)[0]
    outputs.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        outputs.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_that_is_not_contiguous(backend):
    time, batch, _, hidden = sizes = (6, 5, 4, 18)
    given = problem("lstm", sizes)
    strange = Problem(
        given.inputs.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_(),
        tuple(part[:1].detach().expand(batch, hidden).requires_grad_() for part in given.state),
        Weights(*(value.detach().repeat(2, *[1] * (value.ndim - 1))[::2].requires_grad_() for value in given.weights)),
    )
    masks = Noise(
        hkeep=torch.rand(hidden, batch, time, dtype=torch.float64).permute(2, 1, 0),
        ckeep=torch.rand(batch, time, hidden, dtype=torch.float64).transpose(0, 1) < 0.5,
        upd=torch.rand(time, 2 * batch, 2 * hidden, dtype=torch.float64)[:, ::2, ::2],
    )
    gradients = []
    for name in ("reference", backend):
        results = run("lstm", strange, masks, name)
        # The sum's gradient is one number, expanded.
        gradients.append([*results, *torch.autograd.grad(results[0].sum(), strange.leaves)])
    torch.testing.assert_close(gradients[1], gradients[0])


@needs_native
def test_auto_takes_what_is_fast():
    given = problem("lstm", (5, 3, 4, 7), torch.float32)
    zoned = noise_on("lstm", ("hkeep",), (5, 3, 4, 7), torch.float32)
    assert kernels.choose("auto", "lstm", given.inputs, plain=True) == "native"
    assert kernels.choose("auto", "lstm", given.inputs[:1, :1], plain=True) == "vendor"  # one token at a time
    assert kernels.choose("auto", "gru", given.inputs, plain=True) == "vendor"
    assert kernels.choose("auto", "lstm", given.inputs, plain=False) == "native"
    assert kernels.choose("auto", "lstm", given.inputs.bfloat16(), plain=False) == "torch"
    assert kernels.choose("auto", "lstm", given.inputs[:1, :1], plain=False) == "torch"  # one token at a time
    assert kernels.choose("native", "lstm", given.inputs[:1, :1], plain=False) == "native"
    assert kernels.choose("auto", "gru", given.inputs, plain=False) == "torch"
    assert torch.equal(run("lstm", given, zoned, "auto")[0], run("lstm", given, zoned, "native")[0])


@pytest.mark.parametrize("bias", ["two", "one", "none"])
@pytest.mark.parametrize("options", [{}, {"reset_after": True}, {"nonlinearity": "tanh"}, {"nonlinearity": "relu"}])
def test_one_token_at_a_time_is_the_sequence(options, bias):
    layer_type = LSTM if not options else GRU if "reset_after" in options else RNN
    layer = layer_type(4, 5, 2, bias=bias, **options).double()
    tokens = torch.randn(6, 1, 4, dtype=torch.float64)
    assert kernels.choose("auto", layer.cell, tokens[:1], plain=True) == "vendor"
    outputs, final = layer(tokens)
    state, steps = None, []
    for token in tokens.unsqueeze(1):
        output, state = layer(token, state)
        steps.append(output)
    torch.testing.assert_close((torch.cat(steps), state), (outputs, final))
    gradients = [
        torch.autograd.grad(result.square().sum(), [*layer.parameters()]) for result in (outputs, torch.cat(steps))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("missing", ["bias_input", "bias_hidden"])
@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_a_single_bias_keeps_its_place(cell, missing):
    given = problem(cell, (3, 2, 4, 5))
    weights = given.weights._replace(**{missing: None})
    for inputs in (given.inputs, given.inputs[:1, :1]):
        state = given.state[0][: inputs.shape[1]]
        results = [getattr(kernels, cell)(inputs, state, weights, backend=name) for name in ("vendor", "reference")]
        torch.testing.assert_close(*results)


@needs_native
def test_without_a_compiler_plain_torch_takes_its_place(tmp_path):
    code = (
        "import logging, torch; logging.basicConfig()\n"
        "from zoo import kernels\n"
        "x = torch.zeros(2, 1, 1)\n"
        "print(kernels.choose('auto', 'lstm', x, plain=False), kernels.choose('auto', 'lstm', x, plain=True))"
    )
    environment = {"PATH": "", "CXX": "no-such-compiler", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["torch", "vendor"]
    assert done.stderr.count("\n") == 1
    assert "no native recurrent code, plain torch runs instead" in done.stderr
    assert "no-such-compiler" in done.stderr


@needs_native
def test_native_code_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("ZOO_NATIVE", "0")
    assert native._library.__wrapped__() is None


@needs_native
def test_another_processor_has_compiled_code_of_its_own(compiler_without_openmp, monkeypatch):
    mine = native._built()
    monkeypatch.setattr(native, "_processor", lambda: "another")
    assert native._built() != mine


@needs_native
def test_a_damaged_library_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good = native._library()
    monkeypatch.setattr(native, "_compile", lambda compiler, output: shutil.copyfile(good._name, output))
    library = native._built()
    library.write_bytes(library.read_bytes()[:100])
    assert native._library.__wrapped__()._name == str(library)
    assert library.stat().st_size > 1_000


@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
def test_gradients_of_gradients_are_of_the_reference_alone(backend):
    inputs = torch.randn(3, 2, 4, requires_grad=True)
    layer = LSTM(4, 5, state_noise=Zoneout(0.1, 0.1), backend=backend)
    with pytest.raises(RuntimeError, match=r"create_graph=True\) with backend='reference' alone"):
        torch.autograd.grad(layer(inputs)[0].sum(), inputs, create_graph=True)
    layer.backend = "reference"
    (gradient,) = torch.autograd.grad(layer(inputs)[0].sum(), inputs, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), inputs)[0].isfinite().all()


@needs_native
def test_the_compiled_code_is_cached_and_a_broken_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = native._built()
    assert first.parent == tmp_path / "recurrent-zoo"
    stamp = first.stat().st_mtime_ns
    assert native._built() == first
    assert first.stat().st_mtime_ns == stamp
    assert [*first.parent.iterdir()] == [first]
    first.unlink()
    monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, "--no-such-flag"))
    with pytest.raises(subprocess.CalledProcessError):
        native._built()
    assert not [*first.parent.iterdir()]


@pytest.fixture
def compiler_that(tmp_path, monkeypatch):
    """Takes a shell script to be the compiler, and gives it an empty cache."""

    def write(script):
        compiler = tmp_path / "c++"
        compiler.write_text(f'#!/bin/sh\n[ "$*" = --version ] && exit\n{script}\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    return write


@pytest.fixture
def compiler_without_openmp(compiler_that):
    """Its libraries are empty, but it is fast."""
    compiler_that('case "$*" in *-fopenmp*) exit 1;; esac\nfor last; do :; done\n: > "$last"')


def test_a_compiler_without_openmp_is_named_in_one_line(compiler_without_openmp, caplog):
    native._built()
    assert len(caplog.messages) == 1
    assert "one thread" in caplog.messages[0]
    native._built()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("known", "expected"), [("-march=native", "-march=native"), ("-mcpu=native", "-mcpu=native"), ("-O3", None)]
)
def test_the_processor_is_named_as_the_compiler_has_it(compiler_that, known, expected):
    refused = [f"*{option}*) exit 1;; " for option in ("-march=native", "-mcpu=native") if option != known]
    compiler_that(f'case "$*" in {"".join(refused)}esac\nfor last; do :; done\necho "$*" > "$last"')
    options = native._built().read_text().split()
    assert "-fopenmp" in options
    assert [option for option in options if option.endswith("=native")] == ([expected] if expected else [])


def test_what_the_compiler_refused_is_said(compiler_that, caplog):
    said = "in a file:\\nx.h: fatal error: no such file\\ncompilation terminated."
    compiler_that(f'printf "{said}" >&2\nexit 1')
    assert native._library.__wrapped__() is None
    assert caplog.messages == ["no native recurrent code, plain torch runs instead: x.h: fatal error: no such file"]


def test_where_the_cache_cannot_be_written_a_process_builds_for_itself(compiler_without_openmp, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    built = native._built()
    assert built.exists()
    assert built.parent.parent == tmp_path
    assert built.parent.stat().st_mode & 0o077 == 0


def test_a_build_sweeps_up_after_those_that_were_killed(compiler_without_openmp):
    first = native._built()
    first.unlink()
    of_a_killed_build, of_another = first.parent / "tmpkilled", first.parent / "tmprunning"
    for folder in (of_a_killed_build, of_another):
        folder.mkdir()
    os.utime(of_a_killed_build, (0, 0))
    native._built()
    assert {*first.parent.iterdir()} == {first, of_another}


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="for g++ and x86 processors")
@pytest.mark.parametrize(
    ("processor", "factor", "products"),
    [("haswell", "float", 12), ("skylake-avx512", "float", 24), ("cooperlake", "Pair", 24)],
)
def test_the_innermost_loop_of_a_product_stays_in_the_registers(tmp_path, processor, factor, products):
    source = tmp_path / "tile.cpp"
    source.write_text(
        f'#include "products.h"\nextern "C" void run(Left<{factor}> a, Panel<{factor}> b, int64_t depth, Target<float> c) '
        f"{{ tile<{factor}, MAX_ROWS, WIDTH>(a, b, depth, c, false); }}"
    )
    options = [*native._FLAGS, f"-march={processor}", "-S", "-o", "-"]
    command = ["g++", *options, f"-I{native._SOURCES}", str(source)]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loops = [block for block in re.split(r"^\.L\d+:", assembly, flags=re.M) if re.search(r"vfmadd|vdpbf16", block)]
    assert loops
    for loop in loops:
        body = re.split(r"^\tj", loop, maxsplit=1, flags=re.M)[0]
        assert len(re.findall(r"vfmadd|vdpbf16", body)) == products
        assert not re.search(r"%r[sb]p", body)  # no sum lies on the stack


@needs_native
@pytest.mark.parametrize("name", ["lstm_forward", "normalised_forward"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_workspace_beyond_memory_raises(name, threads):
    one = torch.ones(1, 1, 1)
    given = dict.fromkeys(("h", "c", "w_input", "w_hidden"), torch.ones(4, 1))
    torch.set_num_threads(threads)
    try:
        with pytest.raises(MemoryError, match="workspace"):  # the threads' own: no step runs
            native._call(name, one, torch.ones(1, 1, 4), given, {}, Noise(), {"batch": 2**45, "time": 0, "norm": 1})
    finally:
        torch.set_num_threads(1)


@needs_native
@pytest.mark.parametrize("count", [1, 2, 7, 100_001])
@pytest.mark.parametrize("threshold", [0, 1, 2**31, 2**32 - 5, 2**32])
def test_native_draws_are_those_of_plain_torch(count, threshold):
    for seed in (0, 5, 2**63 - 1):
        ours, plain = (draw(seed, threshold, (count,)) for draw in (native.bernoulli, draws.hashed_bernoulli))
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("draw", [draws.hashed_bernoulli, pytest.param(native.bernoulli, marks=needs_native)])
def test_draws_are_independent_and_of_the_right_rate(draw):
    values = draw(3, round(0.3 * 2**32), (1000, 1000)).double()
    deviation = (0.3 * 0.7) ** 0.5
    assert abs(values.mean() - 0.3) < 5 * deviation / 1000
    assert abs(values.mean(0) - 0.3).max() < 5 * deviation / 1000**0.5
    centred = (values.flatten() - 0.3) / deviation
    for lag in (1, 2, 3, 64, 1000, 4096):  # correlations of N(0, 1 / count)
        assert abs((centred[lag:] * centred[:-lag]).mean()) < 5e-3
    others = (draw(4, round(0.3 * 2**32), (1000, 1000)).double().flatten() - 0.3) / deviation
    assert abs((centred * others).mean()) < 5e-3


def test_torchs_seed_fixes_the_draws():
    torch.manual_seed(0)
    first, second = (kernels.bernoulli(0.5, 10, 10) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(kernels.bernoulli(0.5, 10, 10), first)
    assert kernels.bernoulli(1.0, 1000).all()
    assert not kernels.bernoulli(0.0, 1000).any()


@pytest.mark.parametrize("keep", [-0.1, 1.5, float("nan")])
def test_draws_refuse_what_is_no_probability(keep):
    with pytest.raises(ValueError, match="keep is"):
        kernels.bernoulli(keep, 3)


@needs_native
@pytest.mark.parametrize("bits", [0x7FC00000, -0x400000, 0x7F800001, 0x7FFFFFFF, -1, 0x7FA12345])
def test_every_nan_stays_one(bits):
    given = problem("lstm", (2, 3, 4, 20), torch.float32)
    with torch.no_grad():
        given.inputs.view(torch.int32)[0, 1, 2] = bits
        outputs = run("lstm", given, Noise(), "native")[0]
    assert outputs[:, 1].isnan().all()
    assert not outputs[:, [0, 2]].isnan().any()


def test_kept_memory_of_the_reference_is_not_consumed():
    given = problem("lstm", (5, 3, 4, 7))
    outputs = run("lstm", given, Noise(), "reference")[0]
    (first,) = torch.autograd.grad(outputs.square().sum(), given.inputs, create_graph=True)
    first.sum().backward()  # a second derivative
    assert given.inputs.grad.norm() > 0


WRONG = {
    "mask": (dict(noise=Noise(upd=torch.ones(1, 1, 9))), r"noise\.upd has shape \(1, 1, 9\), .* \(5, 3, 7\)"),
    "negative": (dict(noise=Noise(out=torch.full((1, 1, 1), -0.5))), r"noise\.out holds values from -0.5"),
    "infinite": (dict(noise=Noise(out=torch.full((1, 1, 1), float("inf")))), r"noise\.out holds values .* to inf"),
    "nan": (dict(noise=Noise(ckeep=torch.full((1, 1, 1), float("nan")))), r"noise\.ckeep holds values from nan"),
    "mask dtype": (dict(noise=Noise(rec=torch.ones(1, 1, 1).double())), r"noise\.rec is torch.float64.*torch.float32"),
    "mask device": (dict(noise=Noise(rec=torch.ones(1, 1, 1, device="meta"))), r"noise\.rec is on meta.* cpu"),
    "vendor": (dict(noise=Noise(upd=torch.ones(1, 1, 1)), backend="vendor"), "'vendor' cannot run this LSTM"),
    "weights": (
        dict(weights=Weights(*4 * [torch.zeros(28, 7)])),
        r"weights\.input has shape \(28, 7\), expected \(28, 4\)",
    ),
    "width": (dict(inputs=torch.zeros(5, 3, 9)), r"weights\.input has shape \(28, 4\), expected \(28, 9\)"),
    "time": (dict(inputs=torch.zeros(0, 3, 4)), r"no time step: inputs \(0, 3, 4\)"),
    "batch": (dict(inputs=torch.zeros(5, 0, 4)), r"no batch: inputs \(5, 0, 4\)"),
    "columns": (dict(inputs=torch.zeros(5, 3, 0)), r"no column: inputs \(5, 3, 0\)"),
    "a backend that is not": (dict(backend="nativ"), "'nativ' cannot run this LSTM.*those that can: "),
    "gradient": (dict(noise=Noise(out=torch.ones(1, 1, 1).requires_grad_())), r"noise\.out requires a gradient"),
    "two dimensions": (dict(inputs=torch.zeros(5, 4)), r"shape \(5, 4\), expected \(T, B, I\)"),
    "state": (dict(state=(torch.zeros(2, 7), torch.zeros(3, 7))), r"state h has shape \(2, 7\), expected \(3, 7\)"),
    "dtype": (dict(state=2 * (torch.zeros(3, 7).double(),)), r"state h is torch.float64, the inputs are torch.float32"),
    "device": (dict(inputs=torch.zeros(5, 3, 4, device="meta")), r"weights\.input is on cpu, the inputs are on meta"),
    "triton": (
        dict(backend="triton"),
        "'triton' cannot run this LSTM on cpu in torch.float32; those that can: native, vendor",
    ),
}


@pytest.mark.parametrize(("change", "message"), [*WRONG.values()], ids=[*WRONG])
def test_wrong_arguments_are_named(change, message):
    given = problem("lstm", (5, 3, 4, 7), torch.float32)
    with pytest.raises(ValueError, match=message):
        kernels.lstm(**{**given._asdict(), **change})


def test_masks_of_other_cells_are_refused():
    given = problem("gru", (5, 3, 4, 7))
    with pytest.raises(ValueError, match=r"noise\.cmul has no place in a GRU, whose sites are rec, upd, hkeep, out"):
        kernels.gru(given.inputs, given.state[0], given.weights, Noise(cmul=torch.ones(1, 1, 1)))
    given = problem("rnn", (5, 3, 4, 7))
    with pytest.raises(ValueError, match=r"noise\.upd has no place in a RNN"):
        kernels.rnn(given.inputs, given.state[0], given.weights, Noise(upd=torch.ones(1, 1, 1)))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "batch_norm_lstm", "layer_norm_lstm"])
def test_kernels_take_the_arguments_of_their_reference(name):
    theirs, ours = ([*signature(getattr(module, name)).parameters.values()] for module in (functional, kernels))
    assert ours[: len(theirs)] == theirs
    assert all(argument.kind is Parameter.KEYWORD_ONLY for argument in ours[len(theirs) :])


@pytest.mark.skipif(not native.multiplies_bfloat16(), reason="the processor does not multiply bfloat16")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [*ODD_SIZES, *MORE_SIZES, (30, 64, 20, 33)])
@pytest.mark.parametrize("sites", [(), (PER_GATE,), SITES["lstm"]], ids=lambda sites: "-".join(sites) or "plain")
def test_bfloat16_rounds_the_factors_of_products_and_nothing_else(sites, sizes, threads, monkeypatch):
    given = problem("lstm", sizes, torch.float32)
    noise = noise_on("lstm", sites, sizes, torch.float32)

    def results(backend, bfloat16):
        run = kernels.lstm(*given, noise, cells=True, bfloat16=bfloat16, backend=backend)
        return with_gradients([run.outputs, *run.state, run.cells], given.leaves)

    torch.set_num_threads(threads)
    try:
        ours, exact = results("native", True), results("native", False)
        with torch.no_grad():
            evaluated = kernels.lstm(*given, noise, bfloat16=True, backend="native").outputs
    finally:
        torch.set_num_threads(1)
    assert torch.equal(evaluated, ours[0])
    narrow = sizes[2] <= 4  # such products are taken within the step, as they are
    monkeypatch.setattr(functional, "linear", lambda x, *weights: RoundedProduct.apply(x, *weights, narrow))
    monkeypatch.setattr(functional, "_recurrent", rounded_recurrent)
    expected = results("reference", False)
    # A sum in another order may fall on the other side of a rounding; the second bias, whose gradient is the first's, is
    # added to no product here.
    errors = [relative(*pair) for pair in zip(ours[:-1], expected[:-1], strict=True)]
    assert max(errors) < 1.5e-3
    assert max(relative(*pair) for pair in zip(exact, expected, strict=True)) > 2e-3
    torch.testing.assert_close(ours[-1], ours[-2], rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["auto", "reference", "vendor", *BACKENDS])
@pytest.mark.parametrize("cell", [*VARIANTS])
def test_autocast_is_refused(cell, backend):
    given = problem(cell, (5, 3, 4, 7), torch.float32)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(
            ValueError, match=r"autocast is on, .* dtype, torch.float32: call it in torch.autocast\('cpu', en"
        ),
    ):
        run(cell, given, Noise(), backend)
