import pytest
import torch
from torch import Tensor, nn

from zoo import functional
from zoo.noise import Noise

T, B, I, H = 5, 3, 4, 7


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture
def problem() -> tuple[Tensor, functional.LSTMState, functional.Weights]:
    torch.manual_seed(0)
    weights = functional.Weights(draw(4 * H, I), draw(4 * H, H), draw(4 * H), draw(4 * H))
    return draw(T, B, I), (draw(B, H), draw(B, H)), weights


def mask(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64).bernoulli()


PER_GATE = "one recurrent mask a gate"
ALL_NOISE = {
    "rec": lambda: mask(T, B, H),
    "upd": lambda: mask(T, B, H),
    "cmul": lambda: mask(1, B, H),
    "ckeep": lambda: mask(T, B, H),
    "hkeep": lambda: mask(T, B, H),
    "out": lambda: mask(T, 1, H),
}


def test_equals_torch_without_noise(problem):
    inputs, (h, c), weights = problem
    reference = nn.LSTM(I, H, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip(reference.parameters(), weights, strict=True):
            parameter.copy_(value)
    expected, (eh, ec) = reference(inputs, (h[None], c[None]))
    outputs, final, _ = functional.lstm(inputs, (h, c), weights)
    for ours, theirs in zip((outputs, *final), (expected, eh[0], ec[0]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def one_step(x, h, c, weights, noise):
    """The docstring's equations, gate by gate, for one time step."""
    w, r, bw, br = weights
    rec = noise.rec if noise.rec is not None else torch.ones(1, B, H, dtype=torch.float64)
    pre = []
    for k in range(4):
        rows = slice(k * H, (k + 1) * H)
        recurrent = rec[0, k] if rec.ndim == 4 else rec[0]
        pre.append(x @ w[rows].T + bw[rows] + (recurrent * h) @ r[rows].T + br[rows])
    i, f, g, o = (torch.sigmoid(pre[0]), torch.sigmoid(pre[1]), torch.tanh(pre[2]), torch.sigmoid(pre[3]))
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    upd, cmul, ckeep, hkeep, out = (one if m is None else m for m in noise[1:])
    new_c = cmul[0] * (f * c + i * g * upd[0])
    new_h = o * torch.tanh(new_c)
    return (1 - ckeep[0]) * c + ckeep[0] * new_c, out[0] * ((1 - hkeep[0]) * h + hkeep[0] * new_h)


@pytest.mark.parametrize("sites", [*([site] for site in ALL_NOISE), list(ALL_NOISE), [PER_GATE]])
def test_noise_follows_the_equations(problem, sites):
    inputs, (h, c), weights = problem
    torch.manual_seed(1)
    noise = Noise(**{site: ALL_NOISE[site]() for site in sites} if sites != [PER_GATE] else {"rec": mask(T, 4, B, H)})
    outputs, (final_h, final_c), _ = functional.lstm(inputs, (h, c), weights, noise)
    for t in range(T):
        step = Noise(*(None if m is None else m[t : t + 1] if len(m) > 1 else m for m in noise))
        c, h = one_step(inputs[t], h, c, weights, step)
        torch.testing.assert_close(outputs[t], h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((final_h, final_c), (h, c), rtol=1e-12, atol=1e-12)


def test_kept_hidden_state_sees_the_new_cell_even_where_the_cell_is_kept_old(problem):
    inputs, state, weights = problem
    zeros = torch.zeros(1, 1, 1, dtype=torch.float64)
    outputs, (_, c), _ = functional.lstm(inputs[:1], state, weights, Noise(ckeep=zeros))
    plain, *_ = functional.lstm(inputs[:1], state, weights)
    torch.testing.assert_close(c, state[1])
    torch.testing.assert_close(outputs, plain)


def test_a_sequence_may_be_cut(problem):
    inputs, state, weights = problem
    noise = Noise(**{site: make() for site, make in ALL_NOISE.items()})
    whole, final, _ = functional.lstm(inputs, state, weights, noise)
    first = Noise(*(m[:2] if len(m) > 1 else m for m in noise))
    second = Noise(*(m[2:] if len(m) > 1 else m for m in noise))
    head, middle, _ = functional.lstm(inputs[:2], state, weights, first)
    tail, end, _ = functional.lstm(inputs[2:], middle, weights, second)
    torch.testing.assert_close((torch.cat([head, tail]), end), (whole, final), rtol=0, atol=0)


def test_gradients(problem):
    inputs, state, weights = problem
    leaves = [value.clone().requires_grad_() for value in (inputs, *state, *weights)]
    noise = Noise(**{site: make() for site, make in ALL_NOISE.items()})

    def run(x, h, c, *w):
        outputs, final, _ = functional.lstm(x, (h, c), functional.Weights(*w), noise)
        return (outputs, *final)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize(
    ("noise", "name"),
    [
        (Noise(upd=torch.ones(T, B, H + 1)), "upd"),
        (Noise(rec=torch.ones(T, 3, B, H)), "rec"),
        (Noise(out=torch.ones(B, H)), "out"),
    ],
)
def test_noise_of_a_wrong_shape_is_named(noise, name):
    with pytest.raises(ValueError, match=rf"noise\.{name} has shape"):
        noise.check(torch.zeros(T, B, 1), H)


def test_noise_off():
    assert Noise().off
    assert not Noise(cmul=torch.ones(1, 1, 1)).off
