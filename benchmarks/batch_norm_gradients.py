"""What the gain of recurrent batch normalisation does to the gradient on its way back through sequential MNIST."""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import report
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.datamodules import SequentialMNIST
from zoo.models import RecurrentBatchNormClassifier

GAMMAS = tuple(tenth / 10 for tenth in range(1, 11))
UNITS, BATCH, CLASSES = 100, 100, SequentialMNIST.num_classes
EPS, INITIAL_NOISE = 1e-5, 0.1
SIGMAS = SAMPLES = 1000
SEED = 1
THIN = 5
"""The csv has one step, and one sigma, in so many."""

LOWEST = 1e-20
"""Where the picture of the tanh RNN ends."""

CONSTANT, FAR = 10.0, 1e3
"""Within the first factor over all steps a norm is nearly constant; beyond the second it has vanished or exploded."""

NOTES = f"""\
The norm of dL/dh(t) at initialisation, of each example by itself, the mean over one batch of {{batch}} training images of
{{steps}} pixels; L is the mean cross-entropy of a softmax on h(T). "First / last" is |dL/dh(1)| / |dL/dh(T)|, "range" the
largest over the smallest of all steps. In float64; the same weights for all gamma.

    h(t) = tanh(gamma (a - mean(a)) / sqrt(var(a) + {EPS:g})),  a = h(t-1) W_h + x(t) W_x,  moments over the batch

is the tanh RNN: {{units}} units, W_h = I, W_x (1, {{units}}) and the softmax's matrix orthogonal, biases 0; every unit of
h(0) is the mean of the example's pixels. The LSTM is `RecurrentBatchNormClassifier` as it starts (the candidate's
recurrent matrix the identity, other matrices orthogonal, the forget gate's bias 1), with all three gains gamma, c(0) = 0
and h(0) ~ N(0, {INITIAL_NOISE:g}^2); it is run a step a call, each with its `first_step`, so that every h(t) is at hand.
tanh'(x) = 1 - tanh(x)^2 is of {SAMPLES} samples of N(0, sigma^2) for each of {SIGMAS} sigma from 0 to 1.

Cooijmans et al. 2017, "Recurrent batch normalization", arXiv 1603.09025, section 4 and figure 1, which has the tanh RNN and
tanh', not the LSTM. From https://github.com/cooijmanstim/recurrent-batch-normalization: gammas, norm and mean,
results/iclr/rnn_hidden_norms/plot_rnn_gradnorm.py; sigmas and samples, paper/figures/plot_tanh_grad.py; the tanh RNN with
its sizes, eps and starts, `construct_rnn` of sequential_mnist.py at commit d46fb64 (whether the figure's network is that
one is not known); h(0) of the LSTM, experiments/sequentialmnist_bnlstm.sh. Added here: a norm of a range up to
{CONSTANT:g} is called nearly constant; otherwise one that comes to less than 1 / {FAR:,.0f} of the last has vanished, and
one that comes to more than {FAR:,.0f} times the last has exploded."""


class Curve(NamedTuple):
    """Means and quartiles, (N,) each."""

    mean: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def ratio(self) -> float:
        """The first point over the last."""
        return (self.mean[0] / self.mean[-1]).item()

    @property
    def range(self) -> float:
        """The largest over the smallest."""
        return (self.mean.max() / self.mean.min()).item()


def curve(samples: Tensor) -> Curve:
    """Of samples (N, samples)."""
    return Curve(samples.mean(1), samples.quantile(0.25, 1), samples.quantile(0.75, 1))


def gradient_norms(loss: Tensor, states: list[Tensor]) -> Tensor:
    """The norms of dL/dh(t) of every h(t), (B, H) -> (T, B)."""
    return torch.stack([gradient.norm(dim=-1) for gradient in torch.autograd.grad(loss, states)])


def tanh_rnn(inputs: Tensor, labels: Tensor, units: int, gamma: float) -> Tensor:
    """The norms of dL/dh(t) in the batch-normalised tanh RNN of `NOTES`; inputs (T, B, 1), labels (B,) -> (T, B)."""
    torch.manual_seed(SEED)
    w_input, w_hidden = nn.init.orthogonal_(inputs.new_empty(1, units)), torch.eye(units, dtype=inputs.dtype)
    w_softmax = nn.init.orthogonal_(inputs.new_empty(units, CLASSES))
    h = inputs.mean(0).expand(-1, units).requires_grad_()
    states = []
    for x in inputs:
        a = h @ w_hidden + x @ w_input
        h = torch.tanh(gamma * (a - a.mean(0)) / (a.var(0, correction=0) + EPS).sqrt())
        states.append(h)
    return gradient_norms(cross_entropy(h @ w_softmax, labels), states)


def batch_norm_lstm(inputs: Tensor, labels: Tensor, units: int, gamma: float) -> Tensor:
    """The norms of dL/dh(t) in the zoo's batch-normalised LSTM; inputs (T, B, 1), labels (B,) -> (T, B)."""
    torch.manual_seed(SEED)
    model = RecurrentBatchNormClassifier(1, CLASSES, units, len(inputs), gamma).to(inputs.dtype)
    h = INITIAL_NOISE * torch.randn(1, inputs.shape[1], units, dtype=inputs.dtype)
    state = h, torch.zeros_like(h)
    states = []
    for step, x in enumerate(inputs):
        _, state = model.layer(x.unsqueeze(0), state, first_step=step)
        states.append(state[0])
    return gradient_norms(cross_entropy(model.softmax(states[-1][0]), labels), states).squeeze(1)


NETWORKS: dict[str, Callable[[Tensor, Tensor, int, float], Tensor]] = {
    "tanh RNN": tanh_rnn,
    "LSTM": batch_norm_lstm,
}
Gradients = dict[str, dict[float, Curve]]
"""By network and gamma."""


def tanh_derivative() -> tuple[Tensor, Curve]:
    """sigma, and the derivative of tanh at N(0, sigma^2)."""
    torch.manual_seed(SEED)
    sigma = torch.linspace(0, 1, SIGMAS)
    samples = sigma.unsqueeze(1) * torch.randn(SIGMAS, SAMPLES)
    return sigma, curve(1 - samples.tanh().square())


def behaviour(norms: Curve) -> str:
    """What the norm does on its way back."""
    if norms.range <= CONSTANT:
        return "is nearly constant"
    if norms.ratio < 1 / FAR:
        return "vanishes"
    return "explodes" if norms.ratio > FAR else "varies"


def conclusion(gradients: Gradients, derivative: Curve) -> str:
    """What the numbers say, and whether it is what the paper has."""
    small, large = min(GAMMAS), max(GAMMAS)
    sentences, agrees = [], {}
    for network, norms in gradients.items():
        flattest = min(norms, key=lambda gamma: norms[gamma].range)
        at_small, at_large = (
            f"gamma {gamma:g} it {behaviour(norms[gamma])} (first / last {norms[gamma].ratio:.2g}, range "
            f"{norms[gamma].range:.2g})"
            for gamma in (small, large)
        )
        sentences.append(
            f"The gradient of the {network}: with {at_small}, with {at_large}; gamma {flattest:g} has the smallest range."
        )
        both = behaviour(norms[small]), behaviour(norms[large])
        agrees[network] = "agrees" if both == ("is nearly constant", "vanishes") else "does not agree"
    tenths = torch.stack([part.mean() for part in derivative.mean.chunk(10)])
    falls = "falls throughout" if (tenths.diff() < 0).all() else "does not fall throughout"
    return " ".join(
        [
            *sentences,
            "The paper has it nearly constant for small gamma and vanish for large ones, in a tanh RNN:",
            *(f"the {network} {verdict}," for network, verdict in agrees.items()),
            f"and the mean of tanh' {falls} as sigma grows, from {derivative.mean[0].item():.2f} to",
            f"{derivative.mean[-1].item():.2f}.",
        ]
    )


def table(gradients: Gradients) -> list[list[str]]:
    """A line a gamma."""
    return [
        [f"{gamma:g}"]
        + [f"{number:.2g}" for norms in gradients.values() for number in (norms[gamma].ratio, norms[gamma].range)]
        for gamma in GAMMAS
    ]


def write(gradients: Gradients, sigma: Tensor, derivative: Curve, file: Path) -> None:
    """A line a point; `at` is t, from 1, or sigma."""
    with file.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["curve", "gamma", "at", *Curve._fields])

        def add(name: str, gamma: str, places: Tensor, points: Curve) -> None:
            numbers = zip(places[::THIN].tolist(), *(part[::THIN].tolist() for part in points), strict=True)
            for at, *values in numbers:
                rows.writerow([name, gamma, f"{at:.4g}", *(f"{value:.4g}" for value in values)])

        for network, norms in gradients.items():
            for gamma, points in norms.items():
                add(network, f"{gamma:g}", torch.arange(1, len(points.mean) + 1), points)
        add("tanh'", "", sigma, derivative)


def draw(gradients: Gradients, sigma: Tensor, derivative: Curve, file: Path) -> None:
    """A panel a network, and one of the derivative."""
    from matplotlib import colormaps  # half a second to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    *panels, saturation = figure.subplots(1, len(gradients) + 1)
    colours = colormaps["turbo"]
    for axes, (network, norms) in zip(panels, gradients.items(), strict=True):
        for gamma, points in norms.items():
            steps = range(1, len(points.mean) + 1)
            axes.plot(steps, points.mean, color=colours(gamma - 0.1), linewidth=1.2, label=f"{gamma:g}")
        axes.set_yscale("log")
        axes.set_title(f"{network} with batch normalisation")
        axes.set_xlabel("t")
        axes.set_ylabel("norm of dL/dh(t)")
    panels[0].set_ylim(bottom=max(LOWEST, panels[0].get_ylim()[0]))
    figure.legend(*panels[0].get_legend_handles_labels(), title="gamma", loc="outside lower center", ncols=len(GAMMAS))
    saturation.fill_between(sigma, derivative.lower, derivative.upper, alpha=0.3, linewidth=0, label="quartiles")
    saturation.plot(sigma, derivative.mean, label="mean")
    saturation.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="sigma", title="tanh'(x), x ~ N(0, sigma²)")
    saturation.legend(loc="lower left")
    for axes in (*panels, saturation):
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measures, writes the numbers, draws them and says what they mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=UNITS)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--downsample", type=int, default=1, help="average squares of so many pixels by so many")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where csv, md and png go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    data = SequentialMNIST("sequential", arguments.downsample, arguments.batch)
    inputs, labels = next(iter(data.train_dataloader()))
    gradients: Gradients = {
        network: {gamma: curve(norms(inputs.double(), labels, arguments.units, gamma)) for gamma in GAMMAS}
        for network, norms in NETWORKS.items()
    }
    sigma, derivative = tanh_derivative()
    name = arguments.output / Path(__file__).name
    write(gradients, sigma, derivative, name.with_suffix(".csv"))
    draw(gradients, sigma, derivative, name.with_suffix(".png"))
    steps, batch, _ = inputs.shape
    report.write(
        str(name),
        "Gradients through recurrent batch normalisation",
        ["gamma", *(f"{network}, {what}" for network in NETWORKS for what in ("first / last", "range"))],
        table(gradients),
        f"{conclusion(gradients, derivative)}\n\n{NOTES.format(batch=batch, steps=steps, units=arguments.units)}",
    )


if __name__ == "__main__":
    main()
