"""One recurrent layer, with and without zoneout, beside torch.nn.LSTM and the eager loop, at the sizes of the papers."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import report
import torch
from torch import nn

import zoo


class Size(NamedTuple):
    """A published layer; inputs that are data and no other layer's outputs need no gradient."""

    hidden: int
    batch: int
    time: int
    inputs: int
    gradient: bool
    rounds: int

    def work(self, backward: bool) -> int:
        """Floating-point operations of the products."""
        forward = 8 * self.hidden * (self.hidden + self.inputs)
        to_inputs = 8 * self.hidden * self.inputs * self.gradient
        return self.batch * self.time * (forward + backward * (forward + 8 * self.hidden**2 + to_inputs))


SIZES = {
    "sequential MNIST": Size(100, 100, 784, 1, False, 9),
    "char-PTB": Size(1000, 32, 100, 50, False, 9),
    "Zaremba medium": Size(650, 20, 35, 650, True, 15),
    "Zaremba large": Size(1500, 20, 35, 1500, True, 7),
    "AWD-LSTM, batch 20": Size(1150, 20, 70, 1150, True, 7),
    "AWD-LSTM, batch 80": Size(1150, 80, 70, 1150, True, 5),
    "text8": Size(2000, 128, 180, 50, False, 3),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _zoneout() -> zoo.Zoneout:
    return zoo.Zoneout(cell=0.5, hidden=0.05)


LAYERS: dict[str, Callable[[Size], nn.Module]] = {
    "zoo.LSTM, zoneout": lambda size: zoo.LSTM(size.inputs, size.hidden, state_noise=_zoneout()),
    "eager loop, zoneout": lambda size: zoo.LSTM(size.inputs, size.hidden, state_noise=_zoneout(), backend="reference"),
    "zoo.LSTM": lambda size: zoo.LSTM(size.inputs, size.hidden),
    "torch.nn.LSTM": lambda size: nn.LSTM(size.inputs, size.hidden),
}
OURS, EAGER, PLAIN, TORCH = LAYERS
HALF = ", bfloat16"
LAYERS |= {kind + HALF: LAYERS[kind] for kind in (OURS, TORCH)}
GRAPHED = f"{OURS}, CUDA graph"


def outputs(kind: str, layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The layer's, in bfloat16's autocast where the kind asks for it."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=kind.endswith(HALF)):
        run: torch.Tensor = layer(inputs)[0]
    return run.float()


def steps(kind: str, size: Size) -> dict[str, Callable[[], None]]:
    """What is timed: a forward and backward pass, masks drawn within, and a forward pass that evaluates."""
    layer = LAYERS[kind](size).to(DEVICE)
    inputs = torch.randn(size.time, size.batch, size.inputs, device=DEVICE, requires_grad=size.gradient)
    gradient = torch.randn(size.time, size.batch, size.hidden, device=DEVICE)

    def train() -> None:
        inputs.grad = None
        layer.zero_grad()
        outputs(kind, layer, inputs).backward(gradient)  # type: ignore[no-untyped-call]

    def evaluate() -> None:
        layer.eval()
        with torch.inference_mode():
            outputs(kind, layer, inputs)
        layer.train()

    return {"train": train, "evaluate": evaluate}


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def seconds(step: Callable[[], object]) -> float:
    """One run of a step, to its end."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def product_rate() -> float:
    """Floating-point operations a second of a large product, the best of a few."""
    n = 8192 if DEVICE.type == "cuda" else 2048
    a = torch.randn(n, n, device=DEVICE)
    return 2 * n**3 / min(seconds(lambda: a @ a) for _ in range(3))


def time_size(size: Size) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """Seconds of every round, training and evaluating, of each kind; and the rate of a large product."""
    runs = {kind: steps(kind, size) for kind in LAYERS}
    if DEVICE.type == "cuda":
        runs[GRAPHED] = {name: graphed(step) for name, step in steps(OURS, size).items() if name == "train"}
    times: dict[str, dict[str, list[float]]] = {"train": {}, "evaluate": {}}
    rates = []
    for turn in range(size.rounds + 1):
        rates.append(product_rate())
        for kind, run in runs.items():
            for what, step in run.items():
                taken = seconds(step)
                if turn:  # the first warms up
                    times[what].setdefault(kind, []).append(taken)
    return times["train"], times["evaluate"], statistics.median(rates)


def peak_memory(kind: str, size: Size) -> int:
    """Bytes that a training step takes beyond what stands before it, the masks apart."""
    steps(kind, size._replace(hidden=8, batch=2, time=2))["train"]()  # loads the libraries
    layer = LAYERS[kind](size).to(DEVICE)
    inputs = torch.randn(size.time, size.batch, size.inputs, device=DEVICE, requires_grad=size.gradient)
    gradient = torch.randn(size.time, size.batch, size.hidden, device=DEVICE)
    before = _memory(reset=True)
    outputs(kind, layer, inputs).backward(gradient)  # type: ignore[no-untyped-call]
    masks = 2 * size.time * size.batch * size.hidden if "zoneout" in kind else 0  # bool
    return _memory(reset=False) - before - masks


def _memory(reset: bool) -> int:
    """Bytes in use now, from where the peak counts anew, or the peak since then."""
    if DEVICE.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # sets the peak to what is in use
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS" if reset else "VmHWM"))


def memory_in_fresh_process(kind: str, name: str) -> int | None:
    """`peak_memory` in a process of its own; None where the system does not tell."""
    command = [sys.executable, __file__, "memory", kind, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def rows() -> Iterator[list[str]]:
    """The table, size by size."""
    for name, size in SIZES.items():
        train, evaluate, rate = time_size(size)
        work = size.work(backward=True)
        for kind, times in train.items():
            memory = memory_in_fresh_process(kind, name) if kind in LAYERS else None
            inference = evaluate.get(kind)
            yield [
                name,
                kind,
                f"{statistics.median(times) * 1e3:.1f}",
                _ratio(train[EAGER], times),
                _ratio(train[TORCH], times),
                f"{work / statistics.median(times) / 1e9:.0f} ({work / statistics.median(times) / rate:.0%})",
                "" if inference is None else f"{statistics.median(inference) * 1e3:.1f}",
                "" if inference is None else _ratio(evaluate[TORCH], inference),
                "" if memory is None else f"{memory / 2**20:.0f}",
            ]


def _ratio(theirs: list[float], ours: list[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(theirs, ours, strict=True)):.2f}"


def main() -> None:
    """All sizes, or those whose names are given."""
    for name in set(SIZES) - set(sys.argv[1:] or SIZES):
        del SIZES[name]
    if DEVICE.type == "cuda":
        torch.set_float32_matmul_precision("high")
    sizes = "; ".join(f"{name}: H {s.hidden}, B {s.batch}, T {s.time}, I {s.inputs}" for name, s in SIZES.items())
    report.write(
        __file__,
        "One recurrent layer",
        [
            "size",
            "layer",
            "training step, ms",
            "eager loop / it",
            "torch.nn.LSTM / it",
            "GFLOP/s (of a large product)",
            "evaluation, ms",
            "torch.nn.LSTM / it",
            "peak memory of training, MiB",
        ],
        list(rows()),
        f"{sizes}. A training step is forward and backward, float32, masks drawn within it; evaluation has no gradients. "
        "Rows that end in bfloat16 run in its autocast. "
        "Times are medians over interleaved rounds in one process, ratios medians of each round's. The eager loop is "
        "`zoo.functional.lstm`, its products with the inputs batched over time. Memory is what a step adds at its peak, in "
        "a fresh process, masks apart.",
        DEVICE,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(peak_memory(sys.argv[2], SIZES[sys.argv[3]]))
    else:
        main()
