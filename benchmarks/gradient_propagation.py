"""How far back the gradient gets on permuted MNIST after an epoch: zoneout, dropout and no regulariser.

A training is appended to `gradient_propagation.csv` when it ends, and is not repeated. Table and picture are made of that
file alone.
"""

import argparse
import csv
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import report
import torch
from batch_norm_gradients import gradient_norms
from regularisers import Naive
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from trainer import quiet_trainer

from zoo.datamodules import SequentialMNIST
from zoo.layers import LSTM, StateNoise
from zoo.models.recurrent import RecurrentClassifier
from zoo.noise import Extent, Noise
from zoo.optim import RMSProp
from zoo.regularisers import CellDropout, RecurrentDropout, StateRegulariser, Zoneout, draw_noise

UNITS, BATCH, UPDATES, SEEDS = 100, 100, 500, 1
RATE, DECAY, MAX_NORM = 1e-3, 0.5, 1.0  # those of checkpoints/zoneout-pmnist
PROBABILITY = 0.5
SEED = 0
EARLY = 100
LOWEST = 1e-12
"""Where the picture ends."""

NOTES = f"""\
How much of the gradient is at the first {EARLY} of {{steps}} steps, and in the first half of them. A step has the mean, over
one batch of {BATCH} training images, of the norm of each example's own derivative of L, the mean cross-entropy; its share is
the part of the sum over all steps. The loss is that batch's.

    c~(t) = f * c(t-1) + upd * i * g                      upd: dropout of i * g
    h~(t) = o * tanh(cmul * c~(t))                        cmul: dropout of c; scaled, 0 or {1 / (1 - PROBABILITY):g}
    c(t) = c(t-1) + ckeep * (cmul * c~(t) - c(t-1))       ckeep: zoneout of c
    h(t) = h(t-1) + hkeep * (h~(t) - h(t-1))              hkeep = ckeep: zoneout of (c, h)

Masks are Bernoulli({1 - PROBABILITY:g}), afresh at every step, or 1 where the network does not have them. dL/dc(t) and
dL/dh(t) are of what step t hands on, the one while the other stays; nothing reads c(T), and its derivative is 0. dL/dc~(t)
is by zeros added to the new cell before it is dropped or kept, so that nothing comes back through c(t) to a unit that keeps
its old value; through h~(t) it does. Of a network without masks on c it is the dL/dc(t) of the textbooks.

An LSTM of {{units}} units after {{updates:,}} updates of {BATCH} images (500 are an epoch), `order: paper`. It starts and is
trained as checkpoints/zoneout-pmnist: RMSProp, rate {RATE:g}, decay {DECAY:g}, the gradient's norm clipped to {MAX_NORM:g}.
Derivatives are in float64, on the same images for all, with the masks of training, drawn from the same seed.

Krueger et al. 2017, "Zoneout", arXiv 1606.01305, section 4.4 and figure 6, of zoneout and dropout with {PROBABILITY:g} and
neither: "zoneout propagates gradient information to early timesteps much more effectively than dropout on the recurrent
connections, and even more effectively than an unregularized LSTM". Whether h is zoned out too, what is dropped (section
3.2 has c, unscaled, and i * g) and which c is meant are not said: all are here. The authors' code,
https://github.com/capybaralet/recurrent-batch-normalization, vanishing_gradients.py, has dL/dc~(t), one mask for c and h,
dropout of i * g, probabilities of 0.15 and a rate of 1e-4. Added here: the shares, and that an order holds where it does in
both shares of every training."""


class CellDropoutPerStep(CellDropout):
    """Drops elements of an LSTM's cell state with probability p, afresh at every step, unscaled.

        c(t) = m(t) * (f * c(t-1) + i * g)        m(t) ~ Bernoulli(1 - p), (T, B, H)

    Krueger et al. 2017, arXiv 1606.01305, section 3.2, "a naive application of dropout".
    """

    def forward(self, extent: Extent) -> Noise:
        return Noise(cmul=self._mask(self.p, extent, extent.time, extent.batch, extent.hidden_size))


PLAIN = "no regulariser"
ZONEOUT: dict[str, StateRegulariser] = {
    "zoneout of c": Zoneout(cell=PROBABILITY),
    "zoneout of (c, h)": Zoneout(cell=PROBABILITY, hidden=PROBABILITY, shared=True),
}
DROPOUT: dict[str, StateRegulariser] = {
    "dropout of i * g": RecurrentDropout(PROBABILITY),
    "dropout of c": CellDropoutPerStep(PROBABILITY),
    "scaled dropout of c": Naive(PROBABILITY, memory=True),
}
NETWORKS: dict[str, StateNoise] = {PLAIN: None, **ZONEOUT, **DROPOUT}

DERIVATIVES = "dL/dc(t)", "dL/dc~(t)", "dL/dh(t)"


class Training(NamedTuple):
    """Which network, how trained."""

    network: str
    seed: int
    units: int
    updates: int


class Result(NamedTuple):
    """What the gradient does in a trained network."""

    loss: float
    norms: Tensor
    """The batch's means, (derivatives, T)."""

    def share(self, steps: int) -> Tensor:
        """The part of all steps' norms that the first ones have, (derivatives,)."""
        return self.norms[:, :steps].sum(1) / self.norms.sum(1)

    @property
    def early(self) -> Tensor:
        """The shares of the first `EARLY` steps and of the first half, (2, derivatives)."""
        return torch.stack([self.share(EARLY), self.share(self.norms.shape[1] // 2)])


Results = dict[Training, Result]


def train(training: Training, downsample: int) -> RecurrentClassifier:
    """The network after its updates."""
    torch.manual_seed(training.seed)
    noise = NETWORKS[training.network]
    layer = LSTM(1, training.units, bias="one", initial_state="learned", state_noise=noise)
    model = RecurrentClassifier(layer, SequentialMNIST.num_classes, RMSProp(RATE, DECAY), max_norm=MAX_NORM)
    trainer = quiet_trainer(
        max_steps=training.updates,
        max_epochs=-1,
        limit_val_batches=0,
    )
    trainer.fit(model, SequentialMNIST("paper", downsample, BATCH))
    return model


def gradients(model: RecurrentClassifier, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a batch in training, and the norms of `DERIVATIVES` of every example.

    inputs (T, B, 1) of the model's dtype, labels (B,) -> (), (derivatives, T, B).
    """
    model.train()
    layer = model.layer
    time, batch, _ = inputs.shape
    extent = Extent(time, batch, layer.hidden_size, layer.cell, inputs.device, inputs.dtype)
    noise = draw_noise(layer.state_noise, extent)  # type: ignore[arg-type]
    sites = noise.upd, noise.cmul, noise.ckeep, noise.hkeep
    ones = inputs.new_ones(time, 1, 1)
    masks = (ones if mask is None else mask.to(inputs.dtype) for mask in sites)
    weights = layer.weights(0)
    h, c = (part.squeeze(0) for part in layer.initial(batch))
    cells, new_cells, hiddens = [], [], []
    for x, upd, cmul, ckeep, hkeep in zip(linear(inputs, weights.input, weights.bias_input), *masks, strict=True):
        i, f, g, o = (x + linear(h, weights.hidden)).chunk(4, -1)
        new_c = f.sigmoid() * c + i.sigmoid() * g.tanh() * upd
        masked_c = cmul * new_c
        c = (1 - ckeep) * c + ckeep * masked_c
        h = (1 - hkeep) * h + hkeep * o.sigmoid() * masked_c.tanh()
        cells.append(c)
        new_cells.append(new_c)
        hiddens.append(h)
    loss = cross_entropy(model.softmax(h), labels)
    norms = gradient_norms(loss, [*cells[:-1], *new_cells, *hiddens])
    norms = torch.cat([norms[: time - 1], norms.new_zeros(1, batch), norms[time - 1 :]])  # nothing reads c(T)
    return loss.detach(), norms.view(len(DERIVATIVES), time, batch)


def measure(model: RecurrentClassifier, downsample: int) -> Result:
    """Of the batch and the masks that are the same for all."""
    torch.manual_seed(SEED)
    inputs, labels = next(iter(SequentialMNIST("paper", downsample, BATCH).train_dataloader()))
    torch.manual_seed(SEED)
    loss, norms = gradients(model.double(), inputs.double(), labels)
    return Result(loss.item(), norms.mean(2))


def read(file: Path) -> Results:
    """What `add` wrote."""
    if not file.exists():
        return {}
    found: dict[Training, tuple[float, list[list[float]]]] = {}
    with file.open(newline="") as lines:
        for network, seed, units, updates, loss, _, *norms in list(csv.reader(lines))[1:]:
            training = Training(network, int(seed), int(units), int(updates))
            found.setdefault(training, (float(loss), []))[1].append([float(norm) for norm in norms])
    return {
        training: Result(loss, torch.tensor(norms, dtype=torch.float64)) for training, (loss, norms) in found.items()
    }


def add(file: Path, training: Training, result: Result) -> None:
    """Appends a line a derivative."""
    fresh = not file.exists()
    with file.open("a", newline="") as lines:
        rows = csv.writer(lines)
        if fresh:
            rows.writerow([*Training._fields, "loss", "derivative", *range(1, result.norms.shape[1] + 1)])
        for name, norms in zip(DERIVATIVES, result.norms.tolist(), strict=True):
            rows.writerow([*training, f"{result.loss:.4f}", name, *(f"{norm:.3g}" for norm in norms)])


def conclusion(results: Results) -> str:
    """The networks in the order of their shares, and where that is not the paper's."""
    early = {
        network: torch.stack([result.early for training, result in results.items() if training.network == network])
        for network in NETWORKS
    }
    sentences = []
    exceptions: dict[str, list[str]] = {}
    for place, derivative in enumerate(DERIVATIVES):
        halves = {network: shares[:, 1, place].mean().item() for network, shares in early.items()}
        ranks = [f"{network} {percent(halves[network])}" for network in sorted(halves, key=lambda name: -halves[name])]
        sentences.append(f"The first half's share of {derivative}: {', '.join(ranks)}.")
        failing = [
            f"{better} > {worse}"
            for better, worse in (*product(ZONEOUT, [PLAIN, *DROPOUT]), *product([PLAIN], DROPOUT))
            if not (early[better][..., place] > early[worse][..., place]).all()
        ]
        exceptions.setdefault(", ".join(failing), []).append(derivative)
    verdicts = [
        f"by {', '.join(derivatives)} it holds" + (f", but these fail: {failing}" if failing else "")
        for failing, derivatives in exceptions.items()
    ]
    sentences.append(
        f"The paper's order, zoneout > {PLAIN} > dropout (trainings of each: {len(early[PLAIN])}): {'; '.join(verdicts)}."
    )
    return " ".join(sentences)


def percent(share: float) -> str:
    """To three digits, however small."""
    return f"{100 * share:.3g} %"


def table(results: Results) -> list[list[str]]:
    """A line a training."""
    return [
        [training.network, str(training.seed), f"{result.loss:.2f}", *map(percent, result.early.T.flatten().tolist())]
        for training, result in results.items()
    ]


COLOURS = dict(zip(NETWORKS, ("black", "tab:blue", "tab:cyan", "tab:olive", "tab:red", "tab:orange"), strict=True))


def draw(results: Results, file: Path) -> None:
    """A panel a derivative, a curve a training."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, len(DERIVATIVES), sharey=True)
    for place, (axes, derivative) in enumerate(zip(panels, DERIVATIVES, strict=True)):
        for (network, *_), result in results.items():
            norms = result.norms[place]
            steps = range(1, len(norms) + 1)
            axes.plot(steps, norms / norms.sum(), color=COLOURS[network], linewidth=1, label=network)
        axes.set_yscale("log", nonpositive="mask")
        axes.set(xlabel="t", title=f"norm of {derivative}")
        axes.grid(alpha=0.25)
    panels[0].set_ylim(LOWEST, 1)
    panels[0].set_ylabel("part of the sum over all steps")
    curves = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(curves.values(), curves.keys(), loc="outside lower center", ncols=len(NETWORKS))
    figure.savefig(file, dpi=130)


def main() -> None:
    """Trains what the file lacks, then draws it and says what it means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--units", type=int, default=UNITS)
    parser.add_argument("--downsample", type=int, default=1, help="average squares of so many pixels by so many")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where csv, md and png are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = arguments.output / Path(__file__).name
    file = name.with_suffix(".csv")
    results = read(file)
    steps = SequentialMNIST("paper", arguments.downsample).num_steps
    size = arguments.units, arguments.updates, steps
    if any((*training[2:], result.norms.shape[1]) != size for training, result in results.items()):
        sys.exit(f"{file} has trainings of other units, updates or steps than {size}: move it away")
    for seed, network in product(range(1, arguments.seeds + 1), NETWORKS):
        training = Training(network, seed, arguments.units, arguments.updates)
        if training not in results:
            add(file, training, measure(train(training, arguments.downsample), arguments.downsample))
    results = read(file)
    draw(results, name.with_suffix(".png"))
    report.write(
        str(name),
        "How far back the gradient gets",
        ["network", "seed", "loss", *(f"{d}, first {part}" for d in DERIVATIVES for part in (EARLY, "half"))],
        table(results),
        f"{conclusion(results)}\n\n{NOTES.format(steps=steps, units=arguments.units, updates=arguments.updates)}",
    )


if __name__ == "__main__":
    main()
