"""The Triton steps against plain torch: on the GPU where there is one, else in Triton's interpreter, on the CPU."""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from types import SimpleNamespace

import pytest
import torch

from zoo import functional, kernels
from zoo.functional import Weights
from zoo.kernels import fused, pointwise
from zoo.noise import GATES, Noise

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
with pytest.MonkeyPatch.context() as patch:
    if DEVICE == "cpu":
        patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is decorated
    steps = fused.pointwise()

CLOSE = {torch.float32: 1e-6 if DEVICE == "cpu" else 5e-6, torch.float64: 1e-12}
STEPS = {
    "lstm": lambda on, s, noise: on.lstm(s.gates, s.h, s.c, noise, s.h_out, s.c_out),
    "lstm_backward": lambda on, s, noise: on.lstm_backward(s.gates, s.c, noise, s.dh, s.dc),
    "gru_gates": lambda on, s, noise: on.gru_gates(s.gates, s.h, noise.rec, s.h_out),
    "gru_reset": lambda on, s, noise: on.gru_reset(s.gates, s.c),
    "gru": lambda on, s, noise: on.gru(s.gates, s.h, noise, s.h_out),
    "gru_backward": lambda on, s, noise: on.gru_backward(s.gates, s.h, noise, s.dh),
    "gru_gates_backward": lambda on, s, noise: on.gru_gates_backward(s.gates, s.h, noise.rec, s.dc.clone(), s.dh),
    "gru_reset_backward": lambda on, s, noise: on.gru_reset_backward(s.gates, s.c),
    "rnn tanh": lambda on, s, noise: on.rnn(s.gates, s.h, noise, s.h_out, "tanh"),
    "rnn relu": lambda on, s, noise: on.rnn(s.gates, s.h, noise, s.h_out, "relu"),
    "rnn_backward tanh": lambda on, s, noise: on.rnn_backward(s.gates, noise, s.dh, "tanh"),
    "rnn_backward relu": lambda on, s, noise: on.rnn_backward(s.gates, noise, s.dh, "relu"),
}
SITES = {
    "lstm": ["upd", "cmul", "ckeep", "hkeep", "out"],
    "lstm_backward": ["upd", "cmul", "ckeep", "hkeep", "out"],
    "gru_gates": ["rec"],
    "gru": ["upd", "hkeep", "out"],
    "gru_backward": ["upd", "hkeep", "out"],
    "gru_gates_backward": ["rec"],
    "rnn tanh": ["hkeep", "out"],
    "rnn_backward tanh": ["hkeep", "out"],
}


def problem(name: str, batch: int, hidden: int, dtype: torch.dtype) -> SimpleNamespace:
    """Everything that a step reads or writes, the outputs full of what has to be overwritten."""
    torch.manual_seed(batch)
    gates = torch.randn(batch, GATES[name[: 4 if name.startswith("lstm") else 3]] * hidden, dtype=torch.float64)
    names = ("h", "c", "dh", "dc", "h_out", "c_out")
    state = dict(zip(names, torch.randn(6, batch, hidden, dtype=torch.float64), strict=True))
    values = {"gates": gates.tanh() if "backward" in name else 3 * gates, **state}
    return SimpleNamespace(**{key: value.to(DEVICE, dtype) for key, value in values.items()})


def test_a_row_may_lie_far_from_the_next():
    if DEVICE != "cpu":
        pytest.skip("takes 2 GB")  # of addresses: the CPU has them without memory behind them
    far = torch.empty(2_200_000_007, dtype=torch.bool).as_strided((3, 7), (1_100_000_000, 1))
    far.copy_(torch.tensor([[True], [True], [False]]))
    ours, plain = problem("lstm", 3, 7, torch.float32), problem("lstm", 3, 7, torch.float32)
    for on, s in ((steps, ours), (pointwise, plain)):
        STEPS["lstm"](on, s, Noise(hkeep=far))
    torch.testing.assert_close(ours.h_out, plain.h_out)


def mask(kind: type, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    values = 2 * torch.rand(shape, dtype=torch.float64)
    return (values < 1 if kind is bool else values.to(dtype)).to(DEVICE)


def compare(name: str, make, noise: Noise, tolerance: float) -> None:
    """One step in plain torch and in Triton: all that they leave is equal, and something has changed."""
    before, expected, ours = (make() for _ in range(3))
    STEPS[name](pointwise, expected, noise)
    STEPS[name](steps, ours, noise)
    torch.testing.assert_close(vars(ours), vars(expected), rtol=tolerance, atol=tolerance)
    assert not torch.equal(before.gates, ours.gates)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("sizes", [(3, 7), (17, 33), (1, 100)])
def test_a_step_equals_plain_torch(name, sizes):
    for dtype, kind in ((torch.float32, None), (torch.float32, float), (torch.float64, bool)):
        sites = SITES.get(name, []) if kind else []
        noise = Noise(**{site: mask(kind, dtype, *sizes) for site in sites})
        compare(name, lambda dtype=dtype: problem(name, *sizes, dtype), noise, CLOSE[dtype])


@pytest.mark.parametrize(("name", "site"), [(name, site) for name, sites in SITES.items() for site in sites])
def test_a_mask_alone_in_every_shape(name, site):
    for turn, shape in enumerate(((3, 7), (3, 1), (1, 7), (1, 1))):
        for kind in (bool, float):
            dtype = (torch.float32, torch.float64)[(turn + (kind is bool)) % 2]
            noise = Noise(**{site: mask(kind, dtype, *shape)})
            compare(name, lambda dtype=dtype: problem(name, 3, 7, dtype), noise, CLOSE[dtype])


@pytest.mark.parametrize("name", SITES)
def test_masks_of_any_strides_together(name):
    torch.manual_seed(0)
    made = [
        mask(float, torch.float64, 7, 3).T,
        mask(bool, torch.float64, 5, 3, 7)[2],
        mask(float, torch.float64, 1, 7).expand(3, 7),
        mask(bool, torch.float64, 3, 4, 1)[:, 1],
        mask(float, torch.float64, 3, 14)[:, ::2],
    ]
    noise = Noise(**dict(zip(SITES[name], made, strict=False)))
    compare(name, lambda: problem(name, 3, 7, torch.float64), noise, CLOSE[torch.float64])


@pytest.mark.parametrize("name", STEPS)
def test_gates_may_be_a_slice_of_wider_rows_and_states_of_any_strides(name):
    rows = []

    def make() -> SimpleNamespace:
        s = problem(name, 3, 7, torch.float64)
        rows.append(torch.full((3, s.gates.shape[1] + 5), 9.0, dtype=torch.float64, device=DEVICE))
        s.gates = rows[-1][:, 2:-3].copy_(s.gates)
        s.h, s.c = s.h[:1].expand(3, 7), s.c.T.contiguous().T
        s.dh, s.dc = s.dh.T.contiguous().T, s.dc.T.contiguous().T
        return s

    compare(name, make, Noise(), CLOSE[torch.float64])
    assert all((row[:, [0, 1, -3, -2, -1]] == 9).all() for row in rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", STEPS)
def test_half_precision_computes_in_float32_and_rounds_once(name, dtype):
    ours, exact = problem(name, 3, 7, dtype), problem(name, 3, 7, dtype)
    exact = SimpleNamespace(**{key: value.float() for key, value in vars(exact).items()})
    torch.manual_seed(0)
    masks = {site: mask(float, dtype, 3, 7) for site in SITES.get(name, [])}
    STEPS[name](steps, ours, Noise(**masks))
    STEPS[name](pointwise, exact, Noise(**{site: value.float() for site, value in masks.items()}))
    expected = {key: value.to(dtype) for key, value in vars(exact).items()}
    torch.testing.assert_close(vars(ours), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["lstm", "gru_gates", "gru", "rnn tanh", "rnn relu"])
def test_saturated_gates_are_finite_and_a_nan_stays_one(name, dtype):
    def make() -> SimpleNamespace:
        s = problem(name, 3, 7, dtype)
        s.gates[:, ::2] = torch.tensor([1e3, -1e3, -88.0], dtype=dtype, device=DEVICE)[:, None]
        s.gates[0, -1] = float("nan")
        return s

    expected, ours = make(), make()
    STEPS[name](pointwise, expected, Noise())
    STEPS[name](steps, ours, Noise())
    torch.testing.assert_close(vars(ours), vars(expected), rtol=CLOSE[dtype], atol=CLOSE[dtype], equal_nan=True)
    assert ours.gates.isnan().sum() == 1


@pytest.mark.parametrize("name", ["lstm_backward", "gru_backward", "rnn_backward"])
def test_gradients_of_the_outputs_may_be_added_inside(name):
    expected, ours = problem(name, 3, 7, torch.float64), problem(name, 3, 7, torch.float64)
    doutput = torch.randn(7, 3, dtype=torch.float64, device=DEVICE).T
    dcell = torch.randn(1, 1, dtype=torch.float64, device=DEVICE).expand(3, 7)
    noise = Noise(hkeep=mask(bool, torch.float64, 3, 7), out=mask(float, torch.float64, 3, 7))
    expected.dh += doutput
    if name == "lstm_backward":
        expected.dc += dcell
        pointwise.lstm_backward(expected.gates, expected.c, noise, expected.dh, expected.dc)
        steps.lstm_backward(ours.gates, ours.c, noise, ours.dh, ours.dc, doutput, dcell)
    elif name == "gru_backward":
        pointwise.gru_backward(expected.gates, expected.h, noise, expected.dh)
        steps.gru_backward(ours.gates, ours.h, noise, ours.dh, doutput)
    else:
        pointwise.rnn_backward(expected.gates, noise, expected.dh, "tanh")
        steps.rnn_backward(ours.gates, noise, ours.dh, "tanh", doutput)
    torch.testing.assert_close(vars(ours), vars(expected), rtol=1e-12, atol=1e-12)


T, B, I, H = 3, 2, 4, 5


def sequence_noise(cell: str, sites: str) -> Noise:
    if sites == "none":
        return Noise()
    names = {"lstm": Noise._fields, "gru": ("rec", "upd", "hkeep", "out"), "rnn": ("rec", "hkeep", "out")}[cell]
    masks = {name: mask(bool if name == "hkeep" else float, torch.float64, T, B, H) for name in names}
    if sites == "per gate":
        masks["rec"] = mask(float, torch.float64, T, GATES[cell], B, H)
    return Noise(**masks)


@pytest.mark.parametrize("sites", ["none", "all", "per gate"])
@pytest.mark.parametrize(
    ("cell", "option"),
    [("lstm", None), ("gru", False), ("gru", True), ("rnn", "tanh"), ("rnn", "relu")],
)
def test_sequences_equal_the_reference_with_all_gradients(cell, option, sites, monkeypatch):
    monkeypatch.setattr(kernels, "choose", lambda *arguments, **options: "triton")  # which wants CUDA
    torch.manual_seed(0)
    shapes = [(T, B, I), (GATES[cell] * H, I), (GATES[cell] * H, H), (GATES[cell] * H,), (GATES[cell] * H,), (B, H)]
    leaves = [torch.randn(shape, dtype=torch.float64, device=DEVICE).requires_grad_() for shape in shapes]
    leaves += [torch.randn(B, H, dtype=torch.float64, device=DEVICE).requires_grad_()] if cell == "lstm" else []
    noise = sequence_noise(cell, sites)
    results = []
    for package in (functional, kernels):
        x, *weights = leaves[:5]
        state = tuple(leaves[5:]) if cell == "lstm" else leaves[5]
        options = [] if cell == "lstm" else [option]
        run = getattr(package, cell)(x, state, Weights(*weights), noise, *options)
        made = (run.outputs, *run.state) if cell == "lstm" else run
        torch.manual_seed(1)
        loss = sum((value * torch.randn(value.shape, dtype=torch.float64).to(DEVICE)).sum() for value in made)
        gradients = torch.autograd.grad(loss, leaves)
        assert all(gradient.norm() > 1e-3 for gradient in gradients)
        results.append((*made, *gradients))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


def test_available_where_the_interpreter_is_asked_for(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert fused.available()
    monkeypatch.delenv("TRITON_INTERPRET")
    assert fused.available() == (DEVICE == "cuda")


def test_a_gpu_where_triton_cannot_start_is_left_to_plain_torch(monkeypatch, caplog):
    def start() -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("triton.runtime.driver", SimpleNamespace(active=SimpleNamespace(get_current_target=start)))
    monkeypatch.setattr(fused, "_starts", fused._starts.__wrapped__)
    assert not fused.available()
    assert "no C compiler" in caplog.text


@pytest.mark.skipif(DEVICE == "cuda", reason="the other tests compile for this GPU")
def test_each_step_is_one_kernel_compiled_once_for_all_sizes_and_alignments(monkeypatch, tmp_path):
    """With the machine code of a Hopper GPU, which nothing here can run."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    compiled, launched = set(), []

    def launcher(source, metadata):
        compiled.add(metadata.hash)
        return lambda *arguments: launched.append(source.name)

    hopper = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        launcher_cls=launcher,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 227 * 1024},
            load_binary=lambda *arguments: (None, None, 0, 0, 1024),
        ),
    )
    monkeypatch.setattr(driver, "_active", hopper)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec = spec_from_file_location("steps_for_hopper", steps.__file__)
    for_hopper = module_from_spec(spec)
    spec.loader.exec_module(for_hopper)
    for name in STEPS:
        compiled.clear()
        launched.clear()
        for sizes in ((1, 1), (16, 64), (3, 7)):
            noise = Noise(**{site: mask(bool, torch.float32, 2, *sizes)[1] for site in SITES.get(name, [])})
            s = problem(name, *sizes, torch.float32)
            s.gates = torch.cat([s.gates, s.gates]).view(2, *s.gates.shape)[1]
            STEPS[name](for_hopper, s, noise)
        assert (len(compiled), len(launched)) == (1, 3)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs want CUDA")
def test_a_training_iteration_replayed_from_a_cuda_graph_equals_the_eager_one():
    torch.manual_seed(0)
    time, batch, width, hidden = 9, 3, 4, 7
    shapes = [(4 * hidden, width), (4 * hidden, hidden), (4 * hidden,), (4 * hidden,)]
    initial = [torch.randn(shape, device=DEVICE) for shape in shapes]
    batches = [
        (torch.randn(time, batch, width, device=DEVICE), *(torch.rand(2, time, batch, hidden, device=DEVICE) < 0.5))
        for _ in range(3)
    ]
    zeros = torch.zeros(batch, hidden, device=DEVICE)
    weights = [value.clone().requires_grad_() for value in initial]
    optimiser = torch.optim.SGD(weights, lr=0.5)
    static = [value.clone() for value in batches[0]]

    def iteration() -> None:
        inputs, ckeep, hkeep = static
        optimiser.zero_grad(set_to_none=True)
        noise = Noise(ckeep=ckeep, hkeep=hkeep)
        run = kernels.lstm(inputs, (zeros, zeros), Weights(*weights), noise, backend="triton")
        (run.outputs.square().mean() + run.state[1].square().mean()).backward()
        optimiser.step()

    def train(step) -> list[torch.Tensor]:
        with torch.no_grad():
            for value, start in zip(weights, initial, strict=True):
                value.copy_(start)
        for values in batches:
            for place, value in zip(static, values, strict=True):
                place.copy_(value)
            step()
        return [value.detach().clone() for value in weights]

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        eager = train(iteration)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    optimiser.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        iteration()
    replayed = train(graph.replay)
    torch.testing.assert_close(replayed, eager, rtol=1e-5, atol=1e-6)
    assert all((value - start).norm() > 1e-3 for value, start in zip(replayed, initial, strict=True))
