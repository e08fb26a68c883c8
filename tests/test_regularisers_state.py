"""Regularisers of the recurrent state: the statistics of their masks, and what they make of a step."""

import pytest
import torch

from zoo import functional, kernels
from zoo.noise import GATES, SITES, Extent, Noise
from zoo.regularisers import (
    CellDropout,
    InputGateDropout,
    RecurrentDropout,
    StateDropout,
    StochasticDepth,
    Zoneout,
    check_sites,
    draw_noise,
)

T, B, H = 40, 30, 50


def extent(cell="lstm", time=T, batch=B, hidden_size=H):
    return Extent(time, batch, hidden_size, cell, torch.device("cpu"), torch.float64)


def draw(regulariser, *, seed=0, **sizes):
    torch.manual_seed(seed)
    return regulariser.train()(extent(**sizes))


def rate(mask):
    return mask.double().mean().item()


def filled(noise):
    return tuple(name for name, mask in noise._asdict().items() if mask is not None)


# What each keeps with 1 - p, its masks' shape, and whether it stays unscaled.
PER_STEP, PER_SEQUENCE, PER_GATE = (T, B, H), (1, B, H), (1, 4, B, H)
MASKS = [
    (Zoneout(cell=0.3, hidden=0.1), {"ckeep": 0.7, "hkeep": 0.9}, PER_STEP),
    (Zoneout(cell=0.3, hidden=0.3, shared=True), {"ckeep": 0.7, "hkeep": 0.7}, PER_STEP),
    (RecurrentDropout(0.3), {"upd": 0.7}, PER_STEP),
    (RecurrentDropout(0.3, per="sequence"), {"upd": 0.7}, PER_SEQUENCE),
    (InputGateDropout(0.3), {"upd": 0.7}, PER_STEP),
    (CellDropout(0.3), {"cmul": 0.7}, PER_SEQUENCE),
    (StochasticDepth(0.3), {"ckeep": 0.7, "hkeep": 0.7}, (T, B, 1)),
]
IDS = [str(regulariser) for regulariser, *_ in MASKS]


@pytest.mark.parametrize(("regulariser", "keeps", "shape"), MASKS, ids=IDS)
def test_unscaled_masks(regulariser, keeps, shape):
    noise = draw(regulariser)
    assert filled(noise) == regulariser.sites("lstm") == tuple(keeps)
    for name, keep in keeps.items():
        mask = getattr(noise, name)
        assert mask.dtype == torch.bool
        assert mask.shape == shape
        assert rate(mask) == pytest.approx(keep, abs=0.04)
        assert not torch.equal(mask[:, 0], mask[:, 1])  # not shared by the batch
    noise.check(torch.zeros(T, B, 1, dtype=torch.float64), H)
    other = regulariser(extent())
    assert not torch.equal(getattr(noise, name), getattr(other, name))


@pytest.mark.parametrize(("regulariser", "keeps", "shape"), MASKS, ids=IDS)
def test_evaluation_takes_the_probability_of_keeping(regulariser, keeps, shape):
    regulariser.eval()
    noise = regulariser(extent())
    assert filled(noise) == tuple(keeps)
    for name, keep in keeps.items():
        mask = getattr(noise, name)
        assert (mask.shape, mask.dtype) == ((1, 1, 1), torch.float64)
        assert mask.item() == keep
    noise.check(torch.zeros(T, B, 1, dtype=torch.float64), H)
    assert next(mask for mask in draw(regulariser) if mask is not None).dtype == torch.bool  # and trains again


@pytest.mark.parametrize(
    "regulariser",
    [Zoneout(), RecurrentDropout(0), InputGateDropout(0), StateDropout(0), CellDropout(0), StochasticDepth(0)],
    ids=str,
)
def test_a_probability_of_0_is_off(regulariser):
    assert draw(regulariser).off
    assert regulariser.eval()(extent()).off


def test_a_probability_is_read_at_every_draw():
    zoneout = Zoneout(cell=0.5, hidden=0.5)
    zoneout.cell = 0.0
    zoneout.hidden = 0.1
    noise = draw(zoneout)
    assert noise.ckeep is None
    assert rate(noise.hkeep) == pytest.approx(0.9, abs=0.01)
    assert zoneout.eval()(extent()).hkeep.item() == 0.9


def test_zoneout_draws_for_each_state_and_step_by_itself():
    noise = draw(Zoneout(cell=0.5, hidden=0.5))
    assert rate(noise.ckeep == noise.hkeep) == pytest.approx(0.5, abs=0.01)
    assert rate(noise.ckeep[1:] == noise.ckeep[:-1]) == pytest.approx(0.5, abs=0.01)
    assert rate(noise.ckeep[..., 1:] == noise.ckeep[..., :-1]) == pytest.approx(0.5, abs=0.01)


def test_shared_zoneout_and_stochastic_depth_have_one_mask_for_both_states():
    shared = draw(Zoneout(cell=0.5, hidden=0.5, shared=True))
    assert torch.equal(shared.ckeep, shared.hkeep)
    depth = draw(StochasticDepth(0.5))
    assert torch.equal(depth.ckeep, depth.hkeep)


@pytest.mark.parametrize(("cell", "hidden"), [(0.1, 0.2), (0.1, 0.0), (0.0, 0.1)])
def test_a_shared_mask_of_two_probabilities_is_an_error(cell, hidden):
    with pytest.raises(ValueError, match=f"one probability, but cell is {cell} and hidden is {hidden}"):
        Zoneout(cell=cell, hidden=hidden, shared=True)


@pytest.mark.parametrize("name", ["cell", "hidden"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_zoneout_names_the_probability_that_is_none(name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; a probability lies in \[0, 1\]"):
        Zoneout(**{name: value})


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("untied", [False, True])
def test_state_dropout_is_inverted_and_the_same_at_every_step(cell, untied):
    dropout = StateDropout(0.4, untied=untied)
    noise = draw(dropout, cell=cell, batch=200)
    assert filled(noise) == dropout.sites(cell) == ("rec",)
    assert noise.rec.shape == ((1, GATES[cell], 200, H) if untied else (1, 200, H))
    assert noise.rec.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert rate(noise.rec) == pytest.approx(1, abs=0.03)
    noise.check(torch.zeros(T, 200, 1, dtype=torch.float64), H, cell)
    for gate in range(1, GATES[cell] if untied else 1):
        kept = noise.rec[0] > 0
        assert rate(kept[0] == kept[gate]) == pytest.approx(0.6**2 + 0.4**2, abs=0.02)
    assert dropout.eval()(extent(cell)).off


@pytest.mark.parametrize(
    ("regulariser", "of_gru", "of_rnn"),
    [
        (Zoneout(hidden=0.3), "hkeep", "hkeep"),
        (RecurrentDropout(0.3), "upd", "rec"),
        (InputGateDropout(0.3), "upd", None),
        (StateDropout(0.3), "rec", "rec"),
        (CellDropout(0.3), None, None),
        (Zoneout(cell=0.3), None, None),
        (StochasticDepth(0.3), "hkeep", "hkeep"),
    ],
    ids=str,
)
def test_sites_of_the_other_cells(regulariser, of_gru, of_rnn):
    regulariser.train()
    for cell, site in (("gru", of_gru), ("rnn", of_rnn)):
        if site is None:
            with pytest.raises(ValueError, match=f"{type(regulariser).__name__} has no place in a {cell.upper()}"):
                regulariser.sites(cell)
            with pytest.raises(ValueError, match=f"{type(regulariser).__name__} has no place in a {cell.upper()}"):
                regulariser(extent(cell))
        else:
            assert regulariser.sites(cell) == filled(draw(regulariser, cell=cell)) == (site,)
            assert set(regulariser.sites(cell)) <= set(SITES[cell])


def one_step(cell, noise, batch, hidden_size=3):
    """The states after one step from the same start in every example, (B, ...)."""
    generator = torch.Generator().manual_seed(1)
    gates = GATES[cell] * hidden_size
    shapes = [(1, 1, 2), (1, hidden_size), (1, hidden_size), (gates, 2), (gates, hidden_size), (gates,), (gates,)]
    x, h, c, *weights = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)
    x, h, c = x.expand(-1, batch, -1), h.expand(batch, -1), c.expand(batch, -1)
    if cell == "lstm":
        return torch.cat(functional.lstm(x, (h, c), functional.Weights(*weights), noise).state, -1)
    run = functional.gru if cell == "gru" else functional.rnn
    return run(x, h, functional.Weights(*weights), noise)[1]


@pytest.mark.parametrize(
    ("regulariser", "cell"),
    [
        (Zoneout(cell=0.5, hidden=0.2), "lstm"),
        (Zoneout(cell=0.3, hidden=0.3, shared=True), "lstm"),
        (Zoneout(hidden=0.3), "gru"),
        (Zoneout(hidden=0.3), "rnn"),
        (RecurrentDropout(0.4), "gru"),
        (StochasticDepth(0.3), "lstm"),
        (StochasticDepth(0.3), "rnn"),
    ],
    ids=str,
)
def test_a_step_in_evaluation_is_the_mean_over_the_masks(regulariser, cell):
    batch = 20_000
    noise = draw(regulariser, cell=cell, time=1, batch=batch, hidden_size=3)
    mean = one_step(cell, noise, batch).mean(0)
    evaluated = one_step(cell, regulariser.eval()(extent(cell, 1, 1, 3)), 1)[0]
    torch.testing.assert_close(mean, evaluated, rtol=0, atol=0.02)
    assert not torch.allclose(evaluated, one_step(cell, Noise(), 1)[0], rtol=0, atol=0.02)


@pytest.mark.parametrize("regulariser", [RecurrentDropout(0.4), CellDropout(0.4)], ids=str)
def test_a_cell_in_evaluation_is_the_mean_over_the_masks(regulariser):
    noise = draw(regulariser, time=1, batch=20_000, hidden_size=3)
    mean = one_step("lstm", noise, 20_000).mean(0)[3:]
    evaluated = one_step("lstm", regulariser.eval()(extent("lstm", 1, 1, 3)), 1)[0, 3:]
    torch.testing.assert_close(mean, evaluated, rtol=0, atol=0.02)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_stochastic_depth_skips_whole_steps(cell):
    noise = draw(StochasticDepth(0.5), cell=cell, time=1, batch=50, hidden_size=3)
    states, skipped = one_step(cell, noise, 50), ~noise.hkeep[0, :, 0]
    frozen = one_step(cell, Noise(**dict.fromkeys(StochasticDepth(1.0).sites(cell), torch.zeros(1, 1, 1).double())), 1)
    assert (states[skipped] == frozen).all()
    assert (states[~skipped] != frozen).all()
    assert 0 < skipped.sum() < 50


def test_cell_dropout_keeps_a_kept_unit_whole_in_training_and_decays_it_in_evaluation():
    weights = functional.Weights(torch.zeros(4, 1), torch.zeros(4, 1), torch.tensor([-99.0, 99.0, 0.0, 0.0]))
    start = torch.zeros(1, 1), torch.ones(1, 1)  # nothing is written, nothing forgotten
    dropout, where = CellDropout(0.25), Extent(4, 1, 1, "lstm", torch.device("cpu"), torch.float32)
    for seed in range(8):
        noise = draw(dropout, seed=seed, time=4, batch=1, hidden_size=1)
        cells = functional.lstm(torch.zeros(4, 1, 1), start, weights, noise).cells
        assert cells.flatten().tolist() == [float(noise.cmul)] * 4
    cells = functional.lstm(torch.zeros(4, 1, 1), start, weights, dropout.eval()(where)).cells
    torch.testing.assert_close(cells.flatten(), 0.75 ** torch.arange(1.0, 5))


@pytest.mark.parametrize(
    ("cell", "regularisers"),
    [
        ("lstm", [Zoneout(cell=0.5, hidden=0.05), RecurrentDropout(0.2), StateDropout(0.2, untied=True)]),
        ("lstm", [StochasticDepth(0.2), CellDropout(0.2), StateDropout(0.2)]),
        ("gru", [Zoneout(hidden=0.1), InputGateDropout(0.2), StateDropout(0.2, untied=True)]),
        ("rnn", [Zoneout(hidden=0.1), StateDropout(0.2, untied=True)]),
        ("rnn", [Zoneout(hidden=0.1), RecurrentDropout(0.2)]),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_fast_path_takes_what_they_draw(cell, regularisers, training):
    torch.manual_seed(0)
    for regulariser in regularisers:
        regulariser.train(training)
    check_sites(regularisers, cell)
    noise = draw_noise(regularisers, extent(cell, 6, 3, 5))
    assert training or not noise.off
    gates = GATES[cell] * 5
    shapes = [(6, 3, 2), (3, 5), (3, 5), (gates, 2), (gates, 5), (gates,), (gates,)]
    leaves = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def run(module):
        x, h, c, *weights = leaves
        state = (h, c) if cell == "lstm" else h
        outputs = getattr(module, cell)(x, state, functional.Weights(*weights), noise)[0]
        used = [leaf for leaf in leaves if cell == "lstm" or leaf is not c]
        return outputs, torch.autograd.grad(outputs.square().sum(), used)

    torch.testing.assert_close(run(kernels), run(functional), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("first", "second", "site"),
    [
        (Zoneout(cell=0.5), StochasticDepth(0.1), "ckeep"),
        (RecurrentDropout(0.1), InputGateDropout(0.1), "upd"),
        (StateDropout(0.1), StateDropout(0.2), "rec"),
    ],
)
def test_two_claims_of_a_site_are_named(first, second, site):
    names = f"{type(first).__name__} and {type(second).__name__}"
    with pytest.raises(ValueError, match=rf"{names} both claim noise\.{site} of the LSTM"):
        check_sites([first, second], "lstm")
    with pytest.raises(ValueError, match=rf"noise\.{site}"):
        draw_noise([first.train(), second.train()], extent())


def test_sites_are_checked_for_the_cell():
    check_sites([], "rnn")
    check_sites([RecurrentDropout(0.1), StateDropout(0.1)], "lstm")
    with pytest.raises(ValueError, match=r"RecurrentDropout and StateDropout both claim noise\.rec of the RNN"):
        check_sites([RecurrentDropout(0.1), StateDropout(0.1)], "rnn")
    with pytest.raises(ValueError, match="Zoneout has no place in a GRU: cell is 0.5"):
        check_sites([Zoneout(cell=0.5)], "gru")


def test_an_unknown_period_is_named():
    with pytest.raises(ValueError, match="per is 'window'; it must be one of 'step', 'sequence'"):
        RecurrentDropout(0.1, per="window")


def test_draws_of_several_are_their_union():
    noise = draw_noise([Zoneout(cell=0.5, hidden=0.05), StateDropout(0.3)], extent())
    assert filled(noise) == ("rec", "ckeep", "hkeep")
    assert draw_noise([], extent()).off
