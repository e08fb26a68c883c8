import copy
from functools import partial

import pytest
import torch
from rounding import relative, rounded_recurrent
from torch import Tensor, nn
from torch.nn.functional import batch_norm, layer_norm, linear

from zoo import functional, kernels
from zoo.functional import Gains, Moments, Weights
from zoo.kernels import native
from zoo.kernels.normalised import NARROW
from zoo.layers import LSTM, BatchNormLSTM, LayerNormLSTM
from zoo.noise import Noise
from zoo.regularisers import WeightDrop, Zoneout

T, B, I, H = 13, 3, 5, 7
EPS = 1e-5
double = torch.float64
kinds = pytest.mark.parametrize("kind", ["batch", "population", "layer"])
needs_native = pytest.mark.skipif(not native.available(), reason="no C++ compiler for the native backend")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_native)])
LAYERS = {"batch": partial(BatchNormLSTM, max_steps=T), "layer": LayerNormLSTM}
layers = pytest.mark.parametrize("kind", LAYERS)


def problem(time: int = T, batch: int = B, bias: bool = True, dtype: torch.dtype = double) -> dict[str, Tensor]:
    """Everything that has a gradient, by name."""
    torch.manual_seed(time)
    shapes = {"inputs": (time, batch, I), "h": (batch, H), "c": (batch, H), "w": (4 * H, I), "r": (4 * H, H)}
    shapes |= {"b_w": (4 * H,), "b_r": (4 * H,)} if bias else {}
    shapes |= {"gain_input": (4 * H,), "gain_hidden": (4 * H,), "gain_cell": (H,), "bias_cell": (H,)}
    return {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}


def statistics(time: int, dtype: torch.dtype = double) -> Moments:
    torch.manual_seed(3)
    widths = (4 * H, 4 * H, 4 * H, 4 * H, H, H)
    return Moments(*(torch.rand(time, width, dtype=dtype) + 0.1 for width in widths))


def run(module, kind: str, leaves: dict[str, Tensor], noise: Noise = Noise(), **options) -> tuple[Tensor, ...]:
    """Outputs, cells, final h and c, and the moments if there are any, by the reference or a kernel."""
    x, h, c, *others = leaves.values()
    arguments = x, (h, c), Weights(*others[:-4]), Gains(*others[-4:]), noise
    if kind == "layer":
        result, moments = module.layer_norm_lstm(*arguments, EPS, **options), ()
    else:
        given = statistics(len(x), x.dtype) if kind == "population" else None
        result, moments = module.batch_norm_lstm(*arguments, given, EPS, **options)
    return (result.outputs, result.cells, *result.state, *moments)


def loss_of(results: tuple[Tensor, ...]) -> Tensor:
    torch.manual_seed(1)
    return sum((result * torch.randn_like(result)).sum() for result in results[:4])


def with_gradients(module, kind: str, leaves: dict[str, Tensor], noise: Noise = Noise(), **options) -> list[Tensor]:
    results = run(module, kind, leaves, noise, **options)
    return [*results, *torch.autograd.grad(loss_of(results), list(leaves.values()))]


def masks(time: int, batch: int, dtype: torch.dtype = double) -> dict[str, Noise]:
    """One noise a site, of every shape and type, and all of them together."""
    torch.manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=dtype)

    sites = {
        "rec": draw(time, batch, H),
        "upd": draw(time, batch, H) < 0.6,
        "cmul": draw(1, batch, H),
        "ckeep": draw(time, batch, 1),
        "hkeep": draw(time, batch, H) < 0.6,
        "out": draw(time, 1, H),
    }
    alone = {site: Noise(**{site: mask}) for site, mask in sites.items()}
    per_gate = draw(time, 4, batch, H) * 2
    return {
        "none": Noise(),
        **alone,
        "rec of each gate": Noise(rec=per_gate),
        "all": Noise(**sites | {"rec": per_gate}),
    }


# The fast path against the reference


@kinds
@backends
@pytest.mark.parametrize("site", masks(1, 1))
@pytest.mark.parametrize("time", [1, T])
def test_equals_the_reference_with_all_gradients(kind, site, time, backend):
    leaves, noise = problem(time), masks(time, B)[site]
    expected = with_gradients(functional, kind, leaves, noise)
    results = with_gradients(kernels, kind, leaves, noise, backend=backend)
    torch.testing.assert_close(results, expected, rtol=1e-10, atol=1e-10)
    assert all(value.norm() > 1e-3 for value in expected)


@kinds
@backends
def test_equals_the_reference_in_single_precision(kind, backend):
    leaves, noise = problem(batch=8, dtype=torch.float32), masks(T, 8, torch.float32)["all"]
    expected = with_gradients(functional, kind, leaves, noise)
    results = with_gradients(kernels, kind, leaves, noise, backend=backend)
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-3, atol=1e-4 * float(value.detach().abs().max()))


@kinds
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(7, 17, 33), (5, 2, 16), (3, 50, 40), (4, 5, 3), (13, 40, 130)])
@needs_native
def test_native_on_other_sizes_and_threads(kind, sizes, threads, monkeypatch):
    time, batch, hidden = sizes
    monkeypatch.setitem(globals(), "H", hidden)
    for noise in (masks(time, batch)["none"], masks(time, batch)["all"]):
        leaves = problem(time, batch)
        expected = with_gradients(functional, kind, leaves, noise)
        torch.set_num_threads(threads)
        try:
            results = with_gradients(kernels, kind, leaves, noise, backend="native")
        finally:
            torch.set_num_threads(1)
        torch.testing.assert_close(results, expected, rtol=1e-8, atol=1e-8)


@kinds
@backends
def test_without_biases_and_with_one(kind, backend):
    leaves = problem(bias=False)
    torch.testing.assert_close(
        with_gradients(kernels, kind, leaves, backend=backend), with_gradients(functional, kind, leaves)
    )
    leaves = problem()
    del leaves["b_r"]
    torch.testing.assert_close(
        with_gradients(kernels, kind, leaves, backend=backend), with_gradients(functional, kind, leaves)
    )


@backends
@pytest.mark.parametrize("kind", ["batch", "population"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, NARROW, NARROW + 1])
def test_narrow_inputs_and_more(kind, bias, count, backend, monkeypatch):
    """Whose product is normalised by their own moments, or by its."""
    monkeypatch.setitem(globals(), "I", count)
    leaves = problem(bias=bias)
    expected = with_gradients(functional, kind, leaves)
    torch.testing.assert_close(with_gradients(kernels, kind, leaves, backend=backend), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not native.multiplies_bfloat16(), reason="the processor does not multiply bfloat16")
@kinds
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes", [(7, 17, 33), (5, 24, 16), (6, 64, 21), (4, 30, 180)])
@pytest.mark.parametrize("site", ["none", "rec of each gate", "all"])
@pytest.mark.parametrize("count", [1, 5])
def test_bfloat16_rounds_the_factors_of_the_recurrent_product(kind, threads, sizes, site, count, monkeypatch):
    time, batch, hidden = sizes
    monkeypatch.setitem(globals(), "H", hidden)
    monkeypatch.setitem(globals(), "I", count)
    leaves, noise = problem(time, batch, dtype=torch.float32), masks(time, batch, torch.float32)[site]
    torch.set_num_threads(threads)
    try:
        ours = with_gradients(kernels, kind, leaves, noise, backend="native", bfloat16=True)
    finally:
        torch.set_num_threads(1)
    exact = with_gradients(functional, kind, leaves, noise)
    monkeypatch.setattr(functional, "_recurrent", rounded_recurrent)
    expected = with_gradients(functional, kind, leaves, noise)
    # A sum in another order may fall on the other side of a rounding.
    errors = [relative(*pair) for pair in zip(ours, expected, strict=True)]
    assert max(errors) < 0.5 * max(relative(*pair) for pair in zip(exact, expected, strict=True))


@pytest.mark.parametrize("cancels", [False, True])
def test_narrow_inputs_that_go_together_far_from_zero(cancels, monkeypatch):
    """The variance is one of differences, not a difference of squares; where the weights cancel it is not below 0 either."""
    monkeypatch.setitem(globals(), "I", 2)
    leaves = {name: value.detach().float() for name, value in problem(batch=100).items()}
    celsius = leaves["inputs"][..., 0] * 10 + 1000
    leaves["inputs"] = torch.stack([celsius, 1.8 * celsius + 32], -1)
    if cancels:
        leaves["w"][:, 1] = leaves["w"][:, 0] / -1.8
    outputs, _, _, _, _, var, *_ = run(kernels, "batch", leaves)
    expected, _, _, _, _, exact, *_ = run(functional, "batch", {name: value.double() for name, value in leaves.items()})
    assert (var >= 0).all()
    torch.testing.assert_close(var.double(), exact, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=0.02 if cancels else 1e-4)


@kinds
@backends
@pytest.mark.parametrize("part", range(4))
def test_gradients_of_one_result_alone(kind, part, backend):
    """Where autograd hands nothing for the others."""
    leaves = list(problem().values())
    gradients = []
    for module, options in ((functional, {}), (kernels, {"backend": backend})):
        results = run(module, kind, dict(enumerate(leaves)), **options)
        gradients.append(torch.autograd.grad(results[part].square().sum(), leaves))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)


@kinds
@backends
def test_gradients_of_some_arguments_alone(kind, backend):
    leaves = problem()
    expected = with_gradients(functional, kind, leaves)[-4:]
    *others, _, _, _, _ = leaves.values()
    for value in others:
        value.requires_grad_(False)
    loss = loss_of(run(kernels, kind, leaves, backend=backend))
    torch.testing.assert_close(list(torch.autograd.grad(loss, list(leaves.values())[-4:])), expected)


@kinds
def test_the_references_gradients(kind):
    leaves, noise = problem(3), masks(3, B)["all"]
    names = list(leaves)

    def sequence(*values: Tensor) -> tuple[Tensor, ...]:
        return run(functional, kind, dict(zip(names, values, strict=True)), noise)[:4]

    assert torch.autograd.gradcheck(sequence, tuple(leaves.values()), fast_mode=True)


@kinds
@backends
def test_a_second_backward_pass_raises(kind, backend):
    leaves = problem(3)
    loss = run(kernels, kind, leaves, backend=backend)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass"):
        loss.backward()
    loss = run(kernels, kind, leaves, backend="reference")[0].sum()
    loss.backward(retain_graph=True)
    loss.backward()


@kinds
@backends
def test_without_gradients(kind, backend):
    leaves, noise = problem(), masks(T, B)["all"]
    with torch.no_grad():
        results = run(kernels, kind, leaves, noise, backend=backend)
    torch.testing.assert_close(results, run(functional, kind, leaves, noise), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_no_gradient_goes_through_the_moments(backend):
    moments = run(kernels, "batch", problem(), backend=backend)[4:]
    assert len(moments) == len(Moments._fields)
    assert not any(moment.requires_grad for moment in moments)


# The equations, by torch's own normalisations


@kinds
@pytest.mark.parametrize("module", [functional, kernels])
def test_one_step_by_torchs_normalisation(kind, module):
    leaves = problem(1)
    x, h, c, w, r, b_w, b_r, gain_input, gain_hidden, gain_cell, bias_cell = leaves.values()
    given = [moment.squeeze(0) for moment in statistics(1)]

    def norm(value: Tensor, gain: Tensor, bias: Tensor | None, place: int) -> Tensor:
        if kind == "layer":
            return layer_norm(value, gain.shape, gain, bias, EPS)
        if kind == "batch":
            return batch_norm(value, None, None, gain, bias, training=True, eps=EPS)
        return batch_norm(value, given[2 * place], given[2 * place + 1], gain, bias, eps=EPS)

    before = norm(linear(x[0], w), gain_input, None, 0) + norm(linear(h, r), gain_hidden, None, 1) + b_w + b_r
    i, f, g, o = before.chunk(4, -1)
    new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    new_h = o.sigmoid() * norm(new_c, gain_cell, bias_cell, 2).tanh()
    outputs, cells, *_ = run(module, kind, leaves)
    torch.testing.assert_close((outputs[0], cells[0]), (new_h, new_c))


@pytest.mark.parametrize("module", [functional, kernels])
def test_the_moments_are_those_of_the_batch(module):
    leaves = problem()
    x, h, _, w, r, *_ = leaves.values()
    outputs, cells, _, _, *moments = run(module, "batch", leaves)
    terms = linear(x, w), linear(torch.cat([h[None], outputs[:-1]]), r), cells
    expected = [moment for term in terms for moment in (term.mean(1), term.var(1, correction=0))]
    torch.testing.assert_close(moments, expected)


@kinds
@pytest.mark.parametrize("module", [functional, kernels])
def test_both_normalisations_see_the_cell_before_zoneout(kind, module):
    leaves = problem(1)
    plain = run(module, kind, leaves)
    zoned = run(module, kind, leaves, Noise(ckeep=torch.zeros(1, 1, 1, dtype=double)))
    torch.testing.assert_close(zoned[0], plain[0])
    torch.testing.assert_close(zoned[4:], plain[4:])
    torch.testing.assert_close(zoned[1][0], leaves["c"])


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_variances_of_zero_leave_everything_finite(kind):
    leaves = problem(batch=4)
    with torch.no_grad():
        for value in (leaves["h"], leaves["c"], leaves["inputs"][:2]):
            value.zero_() if kind == "layer" else value.copy_(value[..., :1, :].clone())
        leaves["gain_hidden"].fill_(0.1)
    expected = with_gradients(functional, kind, leaves)
    results = with_gradients(kernels, kind, leaves)
    assert all(value.isfinite().all() for value in results)
    if kind == "batch":
        assert all(variance[:2].lt(1e-20).all() for variance in results[5:10:2])
    for result, value in zip(results, expected, strict=True):
        torch.testing.assert_close(result, value, rtol=1e-6, atol=1e-6 * float(value.detach().abs().max()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain_hidden": (H,)}, r"gains\.hidden has shape \(7,\), expected \(28,\)"),
        ({"bias_cell": (28,)}, r"gains\.bias_cell has shape \(28,\), expected \(7,\)"),
        ({"h": (B, H + 1)}, r"state h has shape \(3, 8\), expected \(3, 7\)"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    leaves = problem() | {name: torch.zeros(shape, dtype=double) for name, shape in change.items()}
    for kind in ("batch", "layer"):
        with pytest.raises(ValueError, match=message):
            run(kernels, kind, leaves)


def test_wrong_types_populations_and_backends_are_named():
    leaves = problem()
    with pytest.raises(ValueError, match=r"gains\.input is torch.float32, the inputs are torch.float64"):
        run(kernels, "layer", leaves | {"gain_input": torch.ones(4 * H)})
    x, h, c, *others = leaves.values()
    weights, gains = Weights(*others[:-4]), Gains(*others[-4:])
    with pytest.raises(ValueError, match=r"population\.input_mean has shape \(12, 28\), expected \(13, 28\)"):
        kernels.batch_norm_lstm(x, (h, c), weights, gains, population=statistics(T - 1))
    with pytest.raises(
        ValueError, match="backend 'vendor' cannot run this normalised LSTM .* can: native, torch, reference"
    ):
        run(kernels, "layer", leaves, backend="vendor")


# The layers


def layer_of(kind: str, num_layers: int = 1, **options) -> nn.Module:
    """With gains and shifts that are not where they start."""
    torch.manual_seed(0)
    layer = LAYERS[kind](I, H, num_layers=num_layers, dtype=double, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith(("gain_", "bias_")):
                parameter.normal_()
    return layer


def draw(time: int = T, batch: int = B) -> Tensor:
    return torch.randn(time, batch, I, dtype=double)


def state_of(layer: nn.Module, batch: int = B) -> tuple[Tensor, Tensor]:
    h, c = torch.randn(2, layer.num_layers * layer.directions, batch, H, dtype=double)
    return h, c


@layers
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_is_its_function(kind, backend, batch_first):
    layer = layer_of(kind, 2, bidirectional=True, backend=backend, batch_first=batch_first, bias="two")
    inputs, (h, c) = draw(), state_of(layer)
    sequence, expected = inputs, []
    for number in range(2):
        both = []
        for direction in range(2):
            state = h[2 * number + direction], c[2 * number + direction]
            turned = sequence.flip(0) if direction else sequence
            arguments = turned, state, layer.weights(number, direction), layer.gains(number, direction)
            run = (
                functional.layer_norm_lstm(*arguments) if kind == "layer" else functional.batch_norm_lstm(*arguments)[0]
            )
            both.append(run.outputs.flip(0) if direction else run.outputs)
            expected.append(run)
        sequence = torch.cat(both, -1)
    given = inputs.transpose(0, 1) if batch_first else inputs
    outputs, final, cells = layer.with_cells(given, (h, c))
    torch.testing.assert_close(outputs.transpose(0, 1) if batch_first else outputs, sequence)
    torch.testing.assert_close(
        final, tuple(torch.stack(part) for part in zip(*(r.state for r in expected), strict=True))
    )
    ahead = cells[2].transpose(0, 1) if batch_first else cells[2]
    torch.testing.assert_close(ahead, expected[2].cells)
    torch.testing.assert_close(layer(given, (h, c)), (outputs, final))
    loss = sum(value.square().sum() for value in (outputs, *final))
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    assert all(gradient.norm() > 1e-3 for gradient in gradients)


def test_parameters_and_where_they_start():
    torch.manual_seed(0)
    plain = LSTM(I, H, 2, bias="one", initial_state="learned")
    for kind, gain in (("layer", 1.0), ("batch", 0.1)):
        torch.manual_seed(0)
        layer = LAYERS[kind](I, H, num_layers=2, initial_state="learned")
        own = dict(layer.named_parameters())
        for name, value in plain.named_parameters():
            expected = torch.zeros_like(value) if name.startswith("bias") else value
            torch.testing.assert_close(own.pop(name), expected, rtol=0, atol=0)
        assert [*own] == [
            f"{name}_l{n}" for n in range(2) for name in ("gain_input", "gain_hidden", "gain_cell", "bias_cell")
        ]
        assert all(value.eq(0.0 if "bias" in name else gain).all() for name, value in own.items())
    assert layer.population_hidden_mean_l1.shape == (T, 4 * H)
    assert layer.population_cell_var_l0.eq(1).all()
    assert layer.population_batches_l0.shape == (T,)


@layers
def test_copies_are_whole(kind):
    options = {"num_layers": 2, "bidirectional": True, "initial_state": "learned"}
    layer = layer_of(kind, **options, state_noise=Zoneout(0.3, 0.1), weight_noise=WeightDrop(0.5))
    layer(draw())
    other = LAYERS[kind](I, H, **options, dtype=double, state_noise=Zoneout(0.3, 0.1), weight_noise=WeightDrop(0.5))
    other.load_state_dict(layer.state_dict())
    inputs = draw()
    expected = layer.eval()(inputs)
    for same in (copy.deepcopy(layer), other.eval()):
        torch.testing.assert_close(same(inputs), expected, rtol=0, atol=0)
        same.train()(draw())
        torch.testing.assert_close(layer(inputs), expected, rtol=0, atol=0)


@layers
def test_zoneout_trains_and_evaluates(kind):
    layer = layer_of(kind, state_noise=Zoneout(0.5, 0.2))
    inputs, (h, c) = draw(), state_of(layer)
    assert not torch.allclose(layer(inputs, (h, c))[0], layer(inputs, (h, c))[0])
    layer.eval()
    ckeep, hkeep = (torch.full((1, 1, 1), keep, dtype=double) for keep in (0.5, 0.8))
    arguments = inputs, (h[0], c[0]), layer.weights(0), layer.gains(0), Noise(ckeep=ckeep, hkeep=hkeep)
    if kind == "layer":
        expected = functional.layer_norm_lstm(*arguments)
    else:
        expected, _ = functional.batch_norm_lstm(*arguments, population_of(layer))
    torch.testing.assert_close(layer(inputs, (h, c))[0], expected.outputs)


@layers
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_under_autocast_it_runs_in_its_weights_dtype(kind, given, backend):
    """And rounds, where the processor multiplies such numbers, what R multiplies."""
    layer = layer_of(kind, backend=backend).float()
    inputs = draw(batch=64).to(given)
    expected, _ = layer(inputs.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, state = layer(inputs)
    assert outputs.dtype == state[0].dtype == state[1].dtype == torch.float32
    rounds = backend == "auto" and native.multiplies_bfloat16()
    assert torch.equal(outputs, expected) == (not rounds)
    assert relative(outputs, expected) < (0.1 if rounds else 1e-6)


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (LayerNormLSTM(I, H), "5, 7"),
        (LayerNormLSTM(I, H, 2, gain=0.5, eps=1e-3), "5, 7, num_layers=2, gain=0.5, eps=0.001"),
        (BatchNormLSTM(I, H, max_steps=T), "5, 7, max_steps=13"),
        (BatchNormLSTM(I, H, max_steps=T, bias="two", momentum=None), "5, 7, bias='two', max_steps=13, momentum=None"),
    ],
)
def test_shows_what_is_not_default(layer, shown):
    assert layer.extra_repr() == shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be 1 or more"),
        ({"momentum": 0.0}, r"momentum is 0.0, expected None or a number in \(0, 1\]"),
        ({"momentum": 1.5}, "momentum is 1.5"),
        ({"eps": 0.0}, "eps is 0.0; it must be positive"),
        ({"bias": "three"}, "bias is 'three'"),
    ],
)
def test_a_constructor_names_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        BatchNormLSTM(I, H, **{"max_steps": T} | options)


# Sequences of several lengths

LENGTHS = [13, 8, 2]


def assert_runs_as_alone(layer: nn.Module) -> None:
    inputs, (h, c) = draw(), state_of(layer)
    padding = torch.arange(T)[:, None] >= torch.tensor(LENGTHS)
    inputs[padding] = float("nan")
    outputs, final = layer(inputs, (h, c), LENGTHS)
    assert outputs[padding].eq(0).all()
    for b, length in enumerate(LENGTHS):
        one = slice(b, b + 1)
        alone = layer(inputs[:length, one], (h[:, one], c[:, one]))
        results = outputs[:length, one], tuple(part[:, one] for part in final)
        torch.testing.assert_close(results, alone)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_layer_norm_runs_a_padded_sequence_as_alone(bidirectional):
    layer = layer_of("layer", 2, bidirectional=bidirectional)
    assert_runs_as_alone(layer)
    inputs = draw().requires_grad_()
    layer(inputs, lengths=LENGTHS)[0].square().sum().backward()
    padding = torch.arange(T)[:, None] >= torch.tensor(LENGTHS)
    assert inputs.grad[padding].eq(0).all()
    assert inputs.grad[~padding].ne(0).all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_batch_norm_evaluates_a_padded_sequence_as_alone():
    layer = layer_of("batch", 2)
    layer(draw())
    assert_runs_as_alone(layer.eval())


def test_batch_norm_refuses_lengths_that_its_moments_cannot_leave_out():
    layer, inputs = layer_of("batch"), draw()
    with pytest.raises(ValueError, match="lengths differ, but the moments of a batch would count the padding"):
        layer(inputs, lengths=LENGTHS)
    assert layer.population_batches_l0.eq(0).all()
    torch.testing.assert_close(layer(inputs, lengths=[T] * B), layer(inputs))
    layer = layer_of("batch", bidirectional=True).eval()
    with pytest.raises(ValueError, match="lengths differ, but the reverse direction's statistics"):
        layer(inputs, lengths=LENGTHS)


# Population statistics


def population_of(layer: BatchNormLSTM, suffix: str = "l0") -> Moments:
    return Moments(*(getattr(layer, f"population_{name}_{suffix}") for name in Moments._fields))


def test_averages_equal_to_the_batchs_moments_evaluate_as_training_did():
    layer = layer_of("batch", 2, bidirectional=True, momentum=1.0)
    inputs, state = draw(), state_of(layer)
    expected = layer(inputs, state)
    torch.testing.assert_close(layer.eval()(inputs, state), expected)
    other = layer(inputs[:, :1], tuple(part[:, :1] for part in state))  # an example at a time as well
    torch.testing.assert_close(other[0], expected[0][:, :1])


@pytest.mark.parametrize("momentum", [0.05, 0.7, None])
def test_averages_of_several_batches(momentum):
    layer = layer_of("batch", momentum=momentum)
    expected = [torch.zeros(()), torch.ones(())] * 3
    for number in range(1, 4):
        inputs, (h, c) = draw(), state_of(layer)
        outputs, _ = layer(inputs, (h, c))
        run, used = functional.batch_norm_lstm(inputs, (h[0], c[0]), layer.weights(0), layer.gains(0))
        torch.testing.assert_close(outputs, run.outputs)
        weight = max(1 / number, momentum or 0)
        expected = [(1 - weight) * old + weight * new for old, new in zip(expected, used, strict=True)]
    torch.testing.assert_close(list(population_of(layer)), expected)
    assert layer.population_batches_l0.eq(3).all()
    assert not any(buffer.requires_grad for buffer in layer.buffers())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_averages_of_halves(dtype):
    layer = layer_of("batch").to(dtype)
    layer(draw().to(dtype))
    assert all(average.dtype == dtype and average.isfinite().all() for average in population_of(layer))
    moments = Moments(*(torch.ones_like(average, dtype=torch.float32) for average in population_of(layer)))
    layer._average("l0", 0, moments)  # as CUDA gives those of halves
    assert population_of(layer).cell_mean.ne(0).all()


def test_evaluation_leaves_the_averages_and_training_goes_on_with_its_batch():
    layer, inputs = layer_of("batch"), draw()
    layer(draw())
    trained = layer(inputs)
    before = copy.deepcopy(dict(layer.named_buffers()))
    evaluated = layer.eval()(inputs)
    assert not torch.allclose(evaluated[0], trained[0])
    torch.testing.assert_close(dict(layer.named_buffers()), before, rtol=0, atol=0)
    torch.testing.assert_close(layer.train()(inputs), trained, rtol=0, atol=0)
    assert layer.population_batches_l0.eq(3).all()


def test_steps_that_training_has_not_seen_take_the_last_ones_statistics():
    layer = layer_of("batch")
    for _ in range(3):
        layer(draw(5))
    assert layer.population_batches_l0.tolist() == 5 * [3] + (T - 5) * [0]
    inputs, (h, c) = draw(T + 4), state_of(layer)
    rows = torch.arange(T + 4).clamp(max=4)
    population = Moments(*(moment[rows] for moment in population_of(layer)))
    expected, _ = functional.batch_norm_lstm(
        inputs, (h[0], c[0]), layer.weights(0), layer.gains(0), population=population
    )
    torch.testing.assert_close(layer.eval()(inputs, (h, c))[0], expected.outputs)


def test_steps_past_max_steps_leave_no_trace():
    longer, layer = layer_of("batch"), layer_of("batch")
    inputs = draw(T + 4)
    outputs, _ = longer(inputs)
    torch.testing.assert_close(outputs[:T], layer(inputs[:T])[0])
    torch.testing.assert_close(dict(longer.named_buffers()), dict(layer.named_buffers()))


def test_a_sequence_may_be_cut_where_its_steps_are_counted():
    layer = layer_of("batch", 2)
    layer(draw())
    layer.eval()
    inputs, state = draw(T + 4), state_of(layer)
    whole, final, cells = layer.with_cells(inputs, state)
    results, all_cells, step = [], [], 0
    for window in inputs.split(6):
        outputs, state, own = layer.with_cells(window, state, first_step=step)
        results.append(outputs)
        all_cells.append(own)
        step += len(window)
    torch.testing.assert_close((torch.cat(results), state), (whole, final))
    torch.testing.assert_close([torch.cat(own) for own in zip(*all_cells, strict=True)], cells)
    torch.testing.assert_close(layer(inputs[6:], first_step=6)[0], layer.with_cells(inputs[6:], first_step=6)[0])
    assert not torch.allclose(layer(inputs[6:])[0], layer(inputs[6:], first_step=6)[0])


def test_training_may_start_within_a_sequence():
    layer, plain = layer_of("batch"), layer_of("batch")
    inputs = draw(5)
    torch.testing.assert_close(layer(inputs, first_step=10), plain(inputs))
    assert layer.population_batches_l0.tolist() == 10 * [0] + 3 * [1]
    for ours, theirs in zip(population_of(layer), population_of(plain), strict=True):
        torch.testing.assert_close(ours[10:], theirs[:3])


def test_a_first_step_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="first_step is -1, expected 0 or more"):
        layer_of("batch")(draw(), first_step=-1)
    with pytest.raises(ValueError, match="first_step is 3, expected 0 for a bidirectional layer"):
        layer_of("batch", bidirectional=True)(draw(), first_step=3)


def test_statistics_can_be_estimated_anew():
    layer = layer_of("batch", momentum=0.3)
    layer(draw())
    batches = [draw() for _ in range(4)]
    with torch.no_grad(), layer.estimating_population():
        for inputs in batches:
            layer(inputs)
    assert layer.momentum == 0.3
    zeros = torch.zeros(B, H, dtype=double)
    used = [functional.batch_norm_lstm(x, (zeros, zeros), layer.weights(0), layer.gains(0))[1] for x in batches]
    expected = [torch.stack(moments).mean(0) for moments in zip(*used, strict=True)]
    torch.testing.assert_close(list(population_of(layer)), expected)
    with pytest.raises(ZeroDivisionError), layer.estimating_population():
        _ = 1 / 0
    assert layer.momentum == 0.3
    layer.reset_population()
    assert layer.population_hidden_var_l0.eq(1).all()
    assert layer.population_hidden_mean_l0.eq(0).all()
    assert layer.population_batches_l0.eq(0).all()


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_example_cannot_train(batch_first):
    layer = layer_of("batch", batch_first=batch_first)
    inputs = draw(1, 2) if batch_first else draw(2, 1)
    with pytest.raises(ValueError, match="inputs have a batch of 1, which has no variance"):
        layer(inputs)
    assert layer.population_batches_l0.eq(0).all()
    assert layer.eval()(inputs)[0].isfinite().all()


@layers
def test_a_start_without_variance_stays_finite(kind):
    layer = layer_of(kind)
    inputs = draw()
    inputs[0] = inputs[0, 0]
    outputs, _ = layer(inputs)
    outputs.square().sum().backward()
    assert outputs.isfinite().all()
    assert all(parameter.grad.isfinite().all() and parameter.grad.norm() > 0 for parameter in layer.parameters())
    if kind == "batch":
        assert outputs[0].std(0, correction=0).lt(1e-12).all()
        assert not layer.population_hidden_var_l0[0].any()
