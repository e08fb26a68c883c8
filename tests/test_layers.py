import copy
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import zoo
from zoo import functional
from zoo.kernels import native
from zoo.layers import GRU, LSTM, RNN
from zoo.noise import SITES, Extent, Noise
from zoo.regularisers import (
    CellDropout,
    RecurrentDropout,
    StateDropout,
    StateRegulariser,
    StochasticDepth,
    WeightDrop,
    Zoneout,
)

T, B, I, H = 13, 3, 5, 7
LENGTHS = [13, 8, 2]
OURS = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "relu": partial(RNN, nonlinearity="relu")}
THEIRS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "relu": partial(nn.RNN, nonlinearity="relu")}
KINDS = ("lstm", "gru", "rnn")
kinds = pytest.mark.parametrize("kind", OURS)
either = partial(pytest.mark.parametrize, argvalues=[False, True])
double = torch.float64


class Bernoulli(StateRegulariser):
    """Masks on the named sites, that keep with probability `keep` when training and are `keep` when evaluating."""

    def __init__(self, *names: str, keep: float = 0.5) -> None:
        super().__init__()
        self.names, self.keep = names, keep
        self.drawn: list[Noise] = []

    def sites(self, cell):
        return self.names

    def forward(self, extent: Extent) -> Noise:
        shape = (extent.time, extent.batch, extent.hidden_size) if self.training else (1, 1, 1)
        keeps = (torch.full(shape, self.keep, device=extent.device, dtype=extent.dtype) for _ in self.names)
        masks = (torch.bernoulli(keep) if self.training else keep for keep in keeps)
        self.drawn.append(Noise(**dict(zip(self.names, masks, strict=True))))
        return self.drawn[-1]


class Given(StateRegulariser):
    """The same masks at every call."""

    def __init__(self, noise: Noise) -> None:
        super().__init__()
        self.noise = noise

    def sites(self, cell):
        return tuple(name for name, mask in self.noise._asdict().items() if mask is not None)

    def forward(self, extent):
        return self.noise


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=double)


def state_of(layer: nn.Module, batch: int = B) -> tuple[Tensor, ...]:
    shape = (layer.num_layers * (2 if layer.bidirectional else 1), batch, H)
    return tuple(draw(*shape) for _ in range(2 if isinstance(layer, (LSTM, nn.LSTM)) else 1))


def call(layer: nn.Module, inputs: Tensor, state: tuple[Tensor, ...] | None = None, **options):
    """Outputs and every part of the final state, for any cell."""
    outputs, final = layer(inputs, state if state is None or len(state) > 1 else state[0], **options)
    return outputs, *(final if isinstance(final, tuple) else (final,))


def gradients(layer: nn.Module, results: tuple[Tensor, ...], *leaves: Tensor):
    torch.manual_seed(9)
    loss = sum((result * torch.randn_like(result)).sum() for result in results)
    return torch.autograd.grad(loss, [*layer.parameters(), *leaves])


def pair(kind: str, **options) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, with torch's weights in both."""
    torch.manual_seed(0)
    theirs = THEIRS[kind](I, H, dtype=double, **options)
    ours = OURS[kind](I, H, dtype=double, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@kinds
def test_code_for_torchs_layers_may_flatten_the_parameters(kind):
    ours, theirs = OURS[kind](I, H), THEIRS[kind](I, H)
    assert ours.flatten_parameters() is theirs.flatten_parameters() is None


@kinds
@pytest.mark.parametrize("num_layers", [1, 2])
@either("bidirectional")
@either("batch_first")
@either("bias")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_equals_torch(kind, num_layers, bidirectional, batch_first, bias, backend):
    ours, theirs = pair(kind, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias)
    ours.backend = backend
    leaves = [draw(*((B, T, I) if batch_first else (T, B, I))), *state_of(ours)]
    expected, results = [], []
    for layer, to in ((theirs, expected), (ours, results)):
        inputs, *state = (leaf.clone().requires_grad_() for leaf in leaves)
        to += call(layer, inputs, tuple(state))
        to += gradients(layer, tuple(to), inputs, *state)
    torch.testing.assert_close(results, expected)
    torch.testing.assert_close(call(ours, leaves[0]), call(theirs, leaves[0]))


@kinds
def test_takes_torchs_keywords(kind):
    ours, theirs = pair(kind)
    h, *c = state_of(ours)
    state = (h, *c) if c else h
    inputs = draw(T, B, I)
    torch.testing.assert_close(ours(input=inputs, hx=state), theirs(input=inputs, hx=state))


@kinds
def test_weights_move_to_torch_and_back(kind):
    ours, theirs = OURS[kind](I, H, 2, bidirectional=True), THEIRS[kind](I, H, 2, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    inputs = torch.randn(T, B, I)
    torch.testing.assert_close(call(ours, inputs), call(theirs, inputs))


@kinds
def test_starts_as_torch_does(kind):
    torch.manual_seed(0)
    ours = OURS[kind](I, H, 2, bidirectional=True)
    torch.manual_seed(0)
    theirs = THEIRS[kind](I, H, 2, bidirectional=True)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("ours", "theirs", "own"), [(LSTM, nn.LSTM, ()), (GRU, nn.GRU, ()), (RNN, nn.RNN, ("relu",))])
def test_takes_torchs_arguments_in_torchs_order(ours, theirs, own):
    ours, theirs = (layer(I, H, 2, *own, False, True, 0.1, True) for layer in (ours, theirs))
    for name in ("input_size", "hidden_size", "num_layers", "batch_first", "bidirectional"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.bias, theirs.bias) == ("none", False)
    assert ours.dropout.p == theirs.dropout
    assert getattr(ours, "nonlinearity", None) == getattr(theirs, "nonlinearity", None)


@kinds
def test_one_bias_is_torch_with_the_other_at_zero(kind):
    _, theirs = pair(kind)
    theirs.bias_hh_l0.data.zero_()
    ours = OURS[kind](I, H, bias="one", dtype=double)
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name != "bias_hh_l0"})
    inputs = draw(T, B, I)
    torch.testing.assert_close(call(ours, inputs), call(theirs, inputs))


def test_a_grus_reset_gate_may_act_before_the_product():
    torch.manual_seed(0)
    layer = GRU(I, H, dtype=double, reset_after=False)
    inputs, (state,) = draw(T, B, I), state_of(layer)
    expected = functional.gru(inputs, state[0], layer.weights(0), reset_after=False)
    outputs, final = layer(inputs, state)
    torch.testing.assert_close((outputs, final[0]), expected)
    layer.reset_after = True
    assert not torch.allclose(layer(inputs, state)[0], outputs)


def test_dropout_acts_between_the_layers_alone():
    torch.manual_seed(0)
    layer = LSTM(4, 6, num_layers=2, dropout=0.5)
    inputs = torch.randn(5, 3, 4)
    first, (h, _) = layer(inputs)
    second, (h_again, _) = layer(inputs)
    torch.testing.assert_close(h[0], h_again[0])  # nothing before the first layer
    assert not torch.allclose(first, second)  # something between them
    assert (first != 0).all()  # nothing after the last
    layer.eval()
    torch.testing.assert_close(layer(inputs), layer(inputs))


# Sequences of several lengths


@kinds
@either("bidirectional")
@either("batch_first")
def test_lengths_equal_packed_sequences(kind, bidirectional, batch_first):
    ours, theirs = pair(kind, num_layers=2, bidirectional=bidirectional, batch_first=batch_first)
    leaves = [draw(*((B, T, I) if batch_first else (T, B, I))), *state_of(ours)]
    inputs, *state = (leaf.clone().requires_grad_() for leaf in leaves)
    packed = pack_padded_sequence(inputs, LENGTHS, batch_first=batch_first)
    expected = list(call(theirs, packed, tuple(state)))
    expected[0], _ = pad_packed_sequence(expected[0], batch_first=batch_first)
    expected += gradients(theirs, tuple(expected), inputs, *state)
    inputs, *state = (leaf.clone().requires_grad_() for leaf in leaves)
    results = list(call(ours, inputs, tuple(state), lengths=torch.tensor(LENGTHS)))
    results += gradients(ours, tuple(results), inputs, *state)
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize("kind", KINDS)
@either("bidirectional")
def test_nothing_comes_out_of_the_padding(kind, bidirectional):
    torch.manual_seed(0)
    noise = Bernoulli(*SITES[kind], keep=0.7)
    layer = OURS[kind](
        I, H, num_layers=2, bidirectional=bidirectional, dropout=0.3, state_noise=noise, weight_noise=WeightDrop(0.5)
    )
    padding = torch.arange(T)[:, None] >= torch.tensor(LENGTHS)
    inputs, state = torch.randn(T, B, I), tuple(part.float() for part in state_of(layer))
    expected = None
    for content in (0, 1e3, float("nan")):
        leaf = inputs.masked_fill(padding.unsqueeze(-1), content).requires_grad_()
        torch.manual_seed(2)
        results = call(layer, leaf, state, lengths=LENGTHS)
        assert results[0][padding].eq(0).all()
        results += gradients(layer, results, leaf)
        assert results[-1][padding].eq(0).all()
        assert results[-1][~padding].ne(0).any(-1).all()
        expected = expected or results
        torch.testing.assert_close(results, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@either("bidirectional")
def test_a_padded_sequence_runs_as_it_does_alone(kind, bidirectional):
    torch.manual_seed(0)
    # The reverse direction meets its steps elsewhere in the masks than alone; so those of both stay the same over time.
    masks = {site: torch.rand(1 if bidirectional else T, B, H, dtype=double) + 0.5 for site in SITES[kind]}
    masks["hkeep"] = masks["hkeep"] > 1
    layer = OURS[kind](I, H, 2, bidirectional=bidirectional, dtype=double, state_noise=Given(Noise(**masks)))
    inputs, state = draw(T, B, I), state_of(layer)
    outputs, *final = call(layer, inputs, state, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        one = slice(b, b + 1)
        layer.state_noise[0].noise = Noise(**{site: mask[:length, one] for site, mask in masks.items()})
        alone = call(layer, inputs[:length, one], tuple(part[:, one] for part in state))
        torch.testing.assert_close((outputs[:length, one], *(part[:, one] for part in final)), alone)


@kinds
def test_lengths_may_come_in_any_order(kind):
    torch.manual_seed(0)
    layer = OURS[kind](I, H, 2, bidirectional=True, dtype=double)
    inputs, order = draw(T, B, I), [1, 2, 0]
    expected = call(layer, inputs, lengths=LENGTHS)
    shuffled = call(layer, inputs[:, order], lengths=[LENGTHS[n] for n in order])
    torch.testing.assert_close(shuffled, tuple(part[:, order] for part in expected))


def test_equal_lengths_are_as_none():
    layer = LSTM(I, H)
    inputs = torch.randn(T, B, I)
    torch.testing.assert_close(layer(inputs, lengths=[T] * B), layer(inputs), rtol=0, atol=0)
    LSTM(I, H, backend="vendor")(inputs, lengths=[T] * B)  # which has no masks


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([13, 8, 0], "lengths hold 0, expected 1 to the inputs' 13 steps"),
        ([14, 8, 2], "lengths hold 14, expected 1 to the inputs' 13 steps"),
        ([13, 8], r"lengths have shape \(2,\) .* of shape \(3,\)"),
        (torch.ones(3, 1, dtype=torch.int64), r"lengths have shape \(3, 1\)"),
        ([13.0, 8.0, 2.0], r"lengths .* torch.float32, expected integers"),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_that_do_not_fit_are_named_before_any_draw(lengths, message, batch_first):
    noise = Bernoulli("rec")
    layer = LSTM(I, H, batch_first=batch_first, state_noise=noise)
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(B, T, I) if batch_first else torch.randn(T, B, I), lengths=lengths)
    assert noise.drawn == []


# Noise


def constant(value: float) -> Tensor:
    return torch.full((1, 1, 1), value, dtype=double)


@pytest.mark.parametrize(
    ("kind", "regularisers", "expectation"),
    [
        *((kind, Bernoulli(*SITES[kind]), Noise(**dict.fromkeys(SITES[kind], constant(0.5)))) for kind in KINDS),
        ("lstm", Zoneout(cell=0.5, hidden=0.1), Noise(ckeep=constant(0.5), hkeep=constant(0.9))),
        ("rnn", Zoneout(hidden=0.1), Noise(hkeep=constant(0.9))),
        ("lstm", StateDropout(0.4, untied=True), Noise()),
        ("gru", StateDropout(0.4, untied=True), Noise()),
        ("lstm", StochasticDepth(0.3), Noise(ckeep=constant(0.7), hkeep=constant(0.7))),
        ("gru", [RecurrentDropout(0.2), StateDropout(0.4)], Noise(upd=constant(0.8))),
        (
            "lstm",
            [CellDropout(0.2), RecurrentDropout(0.4, per="sequence")],
            Noise(cmul=constant(0.8), upd=constant(0.6)),
        ),
    ],
)
def test_noise_trains_and_evaluates(kind, regularisers, expectation):
    torch.manual_seed(0)
    layer = OURS[kind](I, H, dtype=double, state_noise=regularisers, weight_noise=WeightDrop(0.5))
    inputs, state = draw(T, B, I), state_of(layer)
    train = call(layer, inputs, state)[0]
    assert not torch.allclose(train, call(layer, inputs, state)[0])
    layer.eval()
    reference = partial(functional.gru, reset_after=True) if kind == "gru" else getattr(functional, kind)
    initial = tuple(part[0] for part in state)
    outputs, final, *_ = reference(inputs, initial if kind == "lstm" else initial[0], layer.weights(0), expectation)
    results = call(layer, inputs, state)
    torch.testing.assert_close(results[0], outputs)
    torch.testing.assert_close(tuple(part[0] for part in results[1:]), final if kind == "lstm" else (final,))
    torch.testing.assert_close(call(layer, inputs, state), results, rtol=0, atol=0)
    layer.train()
    torch.manual_seed(2)
    again = call(layer, inputs, state)
    assert not torch.allclose(again[0], outputs)
    torch.manual_seed(2)
    torch.testing.assert_close(call(layer, inputs, state), again, rtol=0, atol=0)


def test_the_drawn_masks_are_the_ones_that_act():
    torch.manual_seed(0)
    layer = LSTM(I, H, bidirectional=True, dtype=double, state_noise=[Bernoulli("rec"), Bernoulli("ckeep", "hkeep")])
    inputs, (h, c) = draw(T, B, I), state_of(layer)
    outputs, final = layer(inputs, (h, c))
    for direction, noises in enumerate(zip(*(part.drawn for part in layer.state_noise), strict=True)):
        turned = inputs.flip(0) if direction else inputs
        run = functional.lstm(turned, (h[direction], c[direction]), layer.weights(0, direction), Noise.union(noises))
        expected = run.outputs.flip(0) if direction else run.outputs
        torch.testing.assert_close(outputs.chunk(2, -1)[direction], expected)
        torch.testing.assert_close(tuple(part[direction] for part in final), run.state)


def test_every_layer_and_direction_draws_for_itself_at_every_call():
    noise, weight_noise, dropped = Bernoulli("rec"), WeightDrop(0.5), []
    weight_noise.register_forward_hook(lambda module, given, weights: dropped.append(weights.hidden))
    layer = GRU(I, H, num_layers=2, bidirectional=True, state_noise=noise, weight_noise=weight_noise)
    for _ in range(2):
        layer(torch.randn(T, B, I))
    masks = torch.stack([drawn.rec for drawn in noise.drawn]).flatten(1)
    assert masks.shape == (8, T * B * H)
    assert len(masks.unique(dim=0)) == 8
    assert len(torch.stack(dropped).flatten(1).eq(0).unique(dim=0)) == 8


def test_gradients_reach_the_weights_under_weight_noise():
    torch.manual_seed(0)
    layer = LSTM(I, H, weight_noise=WeightDrop(0.5))
    layer(torch.randn(T, B, I))[0].square().sum().backward()
    dropped = (layer.weight_hh_l0.grad == 0).float().mean()
    assert 0.3 < dropped < 0.7
    assert list(layer.state_dict()) == list(nn.LSTM(I, H).state_dict())
    layer.eval().zero_grad()
    layer(torch.randn(T, B, I))[0].square().sum().backward()
    assert layer.weight_hh_l0.grad.ne(0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_may_be_cut(kind):
    torch.manual_seed(0)
    layer = OURS[kind](I, H, num_layers=2, dtype=double, dropout=0.5, state_noise=Bernoulli(*SITES[kind])).eval()
    inputs, state = draw(T, B, I), state_of(layer)
    whole, *final = call(layer, inputs, state)
    head, *middle = call(layer, inputs[:5], state)
    tail, *end = call(layer, inputs[5:], tuple(middle))
    torch.testing.assert_close((torch.cat([head, tail]), end), (whole, final))


# The initial state


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_learned_initial_state_starts_at_zero_and_learns(kind):
    torch.manual_seed(0)
    layer = OURS[kind](I, H, num_layers=2, bidirectional=True, dtype=double, initial_state="learned")
    names = ["initial_h", "initial_c"] if kind == "lstm" else ["initial_h"]
    parts = [layer.get_parameter(name) for name in names]
    assert list(layer.state_dict())[-len(names) :] == names
    assert all(part.shape == (4, H) and part.eq(0).all() for part in parts)
    inputs = draw(T, B, I)
    zeros = tuple(torch.zeros(4, B, H, dtype=double, requires_grad=True) for _ in parts)
    given = call(layer, inputs, zeros)
    results = call(layer, inputs)
    torch.testing.assert_close(results, given)
    expected = gradients(nn.Module(), given, *zeros)
    learned = gradients(layer, results)[-len(names) :]
    torch.testing.assert_close(learned, tuple(gradient.sum(1) for gradient in expected))
    assert all(gradient.ne(0).all() for gradient in learned)
    with torch.no_grad():
        parts[0].fill_(1)
    assert not torch.allclose(call(layer, inputs)[0], results[0])
    layer.reset_parameters()
    assert parts[0].eq(0).all()


# Cells


@either("batch_first")
def test_cells_of_every_layer_and_direction(batch_first):
    torch.manual_seed(0)
    noise = Given(Noise(ckeep=constant(0.6)))
    layer = LSTM(I, H, 2, bidirectional=True, batch_first=batch_first, dtype=double, state_noise=noise)
    inputs, (h, c) = draw(T, B, I), state_of(layer)
    given = inputs.transpose(0, 1) if batch_first else inputs
    outputs, final, cells = layer.with_cells(given, (h, c))
    torch.testing.assert_close((outputs, final), layer(given, (h, c)))
    if batch_first:
        cells = [own.transpose(0, 1) for own in cells]
    for number in range(2):
        ahead, back = (
            functional.lstm(given, (h[index], c[index]), layer.weights(number, direction), noise.noise)
            for direction, (index, given) in enumerate([(2 * number, inputs), (2 * number + 1, inputs.flip(0))])
        )
        torch.testing.assert_close(cells[2 * number : 2 * number + 2], [ahead.cells, back.cells.flip(0)])
        inputs = torch.cat([ahead.outputs, back.outputs.flip(0)], -1)
    assert len(cells) == 4


@pytest.mark.parametrize("noise", [None, Given(Noise(upd=constant(0.6)))])
def test_cells_have_gradients(noise):
    torch.manual_seed(0)
    layer = LSTM(I, H, 2, bidirectional=True, dtype=double, state_noise=noise)
    inputs, results = draw(T, B, I), []
    for backend in ("reference", "auto"):
        layer.backend = backend
        _, _, cells = layer.with_cells(inputs, lengths=LENGTHS)
        results.append(gradients(layer, tuple(cells)))
    torch.testing.assert_close(*results)
    assert results[0][0].ne(0).any()


def test_cells_are_zero_in_the_padding_and_end_in_the_final_state():
    torch.manual_seed(0)
    layer = LSTM(I, H, bidirectional=True)
    inputs, state = torch.randn(T, B, I), (torch.randn(2, B, H), torch.randn(2, B, H))
    outputs, (h, c), (ahead, back) = layer.with_cells(inputs, state, LENGTHS)
    torch.testing.assert_close((outputs, (h, c)), layer(inputs, state, LENGTHS))
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close((ahead[length - 1, b], back[0, b]), (c[0, b], c[1, b]))
        assert ahead[length:, b].eq(0).all()
        assert back[length:, b].eq(0).all()


# As a module


COMPILED = {
    "lstm": lambda: LSTM(I, H, 2, bidirectional=True, dropout=0.3, state_noise=Zoneout(cell=0.5, hidden=0.05)),
    "gru": lambda: GRU(I, H, weight_noise=WeightDrop(0.5)),
    "batch norm": lambda: zoo.BatchNormLSTM(I, H, max_steps=T),
    "layer norm": lambda: zoo.LayerNormLSTM(I, H),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo looks at its own
@pytest.mark.parametrize("kind", COMPILED)
def test_compiled_it_does_the_same_and_no_step_is_unrolled(kind):
    torch._dynamo.reset()
    layer, inputs = COMPILED[kind](), torch.randn(T, B, I, requires_grad=True)
    graphs, results = [], []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    for call in (torch.compile(copy.deepcopy(layer), backend=counted), layer):
        for seed in (1, 2):  # the second finds everything compiled
            torch.manual_seed(seed)
            outputs, *_ = call(inputs)
            results.append((outputs, *torch.autograd.grad(outputs.square().sum(), inputs)))
    torch.testing.assert_close(results[:2], results[2:], rtol=0, atol=0)
    assert sum(len(graph.graph.nodes) for graph in graphs) < T


@pytest.mark.parametrize(
    "noise", [None, Zoneout(0.5, 0.05), zoo.RecurrentDropout(0.25), zoo.CellDropout(0.25)], ids=str
)
def test_the_readable_loop_can_be_traced_as_a_whole(noise):
    torch._dynamo.reset()
    layer, inputs = LSTM(I, H, 2, dropout=0.3, state_noise=noise, backend="reference"), torch.randn(T, B, I)
    dropped, _ = torch.compile(layer, backend="eager", fullgraph=True)(inputs)
    assert not torch.equal(dropped, torch.export.export(layer, (inputs,)).module()(inputs)[0])
    weights = dict(layer.named_parameters())
    gradient = torch.func.grad(lambda own: torch.func.functional_call(layer, own, inputs)[0].sum())(weights)
    assert all(value.any() for value in gradient.values())
    layer.eval()
    expected, _ = layer(inputs)
    compiled, _ = torch.compile(layer, backend="eager", fullgraph=True)(inputs)
    exported, _ = torch.export.export(layer, (inputs,)).module()(inputs)
    torch.testing.assert_close((compiled, exported), (expected, expected))


@kinds
def test_transformed_and_exported_the_readable_loop_runs_by_itself(kind):
    torch.manual_seed(0)
    layer, inputs = OURS[kind](I, H, state_noise=Zoneout(hidden=0.05)).eval(), torch.randn(T, B, I)
    expected, *_ = layer(inputs)
    exported, *_ = torch.export.export(layer, (inputs,)).module()(inputs)
    torch.testing.assert_close(exported, expected)
    weights = dict(layer.named_parameters())
    gradient = torch.func.grad(lambda own: torch.func.functional_call(layer, own, inputs)[0].sum())(weights)
    expected = torch.autograd.grad(expected.sum(), list(weights.values()))
    torch.testing.assert_close(list(gradient.values()), list(expected), rtol=1e-4, atol=1e-4)


def test_a_mask_can_be_compiled():
    torch._dynamo.reset()
    dropout, inputs = zoo.LockedDropout(0.5), torch.ones(T, B, 500)
    dropped = torch.compile(dropout, backend="eager", fullgraph=True)(inputs)
    assert set(dropped.unique().tolist()) == {0, 2}
    assert dropped.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_trace_holds_for_other_inputs(kind):
    layer = OURS[kind](I, H, state_noise=Zoneout(hidden=0.05) if kind == "gru" else Zoneout(0.5, 0.05)).eval()
    trace = torch.jit.trace(layer, (torch.randn(T, B, I),), check_trace=False)
    inputs = torch.randn(T, B, I)
    torch.testing.assert_close(trace(inputs)[0], layer(inputs)[0])


@kinds
@pytest.mark.parametrize("given", [torch.float32, torch.float16])
def test_under_autocast_it_runs_in_its_weights_dtype(kind, given):
    torch.manual_seed(0)
    noise = Bernoulli("hkeep", keep=0.7)
    layer = OURS[kind](I, H, 2, state_noise=noise).eval()
    inputs = torch.randn(T, B, I).to(given)
    expected = call(layer, inputs.float())
    with torch.autocast("cpu", dtype=torch.float16):
        results = call(layer, inputs)
        carried = call(layer, inputs, tuple(part.to(given) for part in results[1:]))
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    assert all(result.dtype == torch.float32 for result in carried)
    torch.testing.assert_close(gradients(layer, results), gradients(layer, expected))


@kinds
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_autocast_to_bfloat16_rounds_an_lstms_products_on_its_way_and_no_state(kind, backend):
    torch.manual_seed(0)
    layer = OURS[kind](I, H, 2, state_noise=Bernoulli("hkeep", keep=0.7), backend=backend).eval()
    inputs = torch.randn(T, B, I)
    expected = call(layer, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = call(layer, inputs)
    assert all(result.dtype == torch.float32 for result in results)
    results += gradients(layer, results)
    expected += gradients(layer, expected)
    rounds = kind == "lstm" and backend == "auto" and native.multiplies_bfloat16()
    assert torch.equal(results[0], expected[0]) == (not rounds)
    torch.testing.assert_close(results, expected, rtol=0.05, atol=0.02 if rounds else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_whole(kind):
    torch.manual_seed(0)
    options = {
        "state_noise": Bernoulli("rec"),
        "weight_noise": WeightDrop(0.5),
        "initial_state": "learned",
        "bias": "one",
    }
    layer = OURS[kind](I, H, 2, bidirectional=True, **options)
    nn.init.ones_(layer.initial_h)
    loaded = OURS[kind](I, H, 2, bidirectional=True, **options)
    loaded.load_state_dict(layer.state_dict())
    inputs = torch.randn(T, B, I)
    expected = call(layer.eval(), inputs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded.eval()):
        torch.testing.assert_close(call(other, inputs), expected, rtol=0, atol=0)
        with torch.no_grad():
            other.weight_hh_l1_reverse.zero_()
        torch.testing.assert_close(call(layer, inputs), expected, rtol=0, atol=0)
    assert all(result.dtype == double for result in call(layer.double(), inputs.double()))


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (LSTM(I, H), "5, 7"),
        (LSTM(I, H, 2, True, True, bidirectional=True), "5, 7, num_layers=2, batch_first=True, bidirectional=True"),
        (LSTM(I, H, bias=False, initial_state="learned"), "5, 7, bias='none', initial_state='learned'"),
        (
            GRU(I, H, bias="one", reset_after=False, backend="torch"),
            "5, 7, bias='one', backend='torch', reset_after=False",
        ),
        (RNN(I, H, nonlinearity="relu"), "5, 7, nonlinearity='relu'"),
    ],
)
def test_shows_what_is_not_default(layer, shown):
    assert layer.extra_repr() == shown


# Arguments that do not fit


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("sizes", [(0, 6), (4, 0), (4, 6, 0)])
def test_sizes_must_be_positive(kind, sizes):
    with pytest.raises(ValueError, match="must be 1 or more"):
        OURS[kind](*sizes)


@pytest.mark.parametrize(
    ("layer", "options", "message"),
    [
        (LSTM, {"dropout": 1.0}, r"1.0; a dropout probability lies in \[0, 1\)"),
        (GRU, {"dropout": -0.1}, "-0.1; a dropout probability"),
        (LSTM, {"bias": "three"}, "bias is 'three'; it must be one of 'two', 'one', 'none'"),
        (LSTM, {"initial_state": "ones"}, "initial_state is 'ones'; it must be one of 'zero', 'learned'"),
        (LSTM, {"backend": "fast"}, "backend is 'fast'; it must be one of 'auto', 'reference'"),
        (RNN, {"nonlinearity": "elu"}, "nonlinearity is 'elu'; it must be one of 'tanh', 'relu'"),
        (LSTM, {"state_noise": [Bernoulli("rec"), StateDropout(0.5)]}, "both claim noise.rec of the LSTM"),
        (GRU, {"state_noise": CellDropout(0.5)}, "CellDropout has no place in a GRU"),
    ],
)
def test_a_constructor_names_what_does_not_fit(layer, options, message):
    with pytest.raises(ValueError, match=message):
        layer(I, H, **options)


def test_a_state_of_other_sizes_is_named():
    layer = zoo.LSTM(4, 6, num_layers=2)
    inputs = torch.randn(5, 3, 4)
    for shape in [(1, 3, 6), (2, 2, 6), (2, 3, 5), (3, 6)]:
        with pytest.raises(ValueError, match=rf"state has shapes .*{shape[-2]}, {shape[-1]}\).*, expected \(2, 3, 6\)"):
            layer(inputs, (torch.zeros(2, 3, 6), torch.zeros(shape)))
    with pytest.raises(ValueError, match=r"state has shapes .*, expected \(2, 3, 6\) for each of h, c"):
        layer(inputs, (torch.zeros(2, 3, 6),))
    with pytest.raises(ValueError, match=r"expected \(2, 5, 6\) for each of h"):
        GRU(4, 6, 2, batch_first=True)(inputs, torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match=r"state has shapes \['tuple'\], expected \(2, 3, 6\) for each of h"):
        GRU(4, 6, 2)(inputs, (torch.zeros(2, 3, 6), torch.zeros(2, 3, 6)))


def test_dropout_that_has_no_place_is_said():
    with pytest.warns(UserWarning, match=r"dropout is 0\.5 and acts between layers, of which there is 1"):
        zoo.LSTM(I, H, dropout=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_that_do_not_fit_are_named(kind):
    layer = OURS[kind](I, H)
    packed = pack_padded_sequence(torch.randn(T, B, I), LENGTHS)
    with pytest.raises(ValueError, match=r"inputs are a PackedSequence, expected .*\(T, B, 5\).* `lengths`"):
        layer(packed)
    with pytest.raises(ValueError, match=r"inputs have shape \(13, 5\), expected \(T, B, 5\); .*inputs.unsqueeze\(1\)"):
        layer(torch.randn(T, I))
    with pytest.raises(ValueError, match="inputs are 6 wide, expected input_size 5"):
        layer(torch.randn(T, B, 6))
    with pytest.raises(ValueError, match="torch.float32, the inputs are torch.float64"):
        layer(draw(T, B, I))
    with pytest.raises(ValueError, match="no time step"):
        layer(torch.randn(0, B, I))


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"state_noise": 0.5}, "state_noise is 0.5, a float; expected a StateRegulariser"),
        ({"state_noise": [zoo.Zoneout(0.1), zoo.WeightDrop(0.5)]}, "state_noise is WeightDrop.*StateRegulariser"),
        ({"weight_noise": zoo.Zoneout(0.1)}, "weight_noise is Zoneout.*expected a WeightRegulariser"),
    ],
)
def test_what_does_not_belong_into_a_slot_is_named(slots, message):
    with pytest.raises(ValueError, match=message):
        zoo.LSTM(4, 6, **slots)
