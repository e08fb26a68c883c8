"""Whether zoneout makes units keep their meaning: a linear recurrence, without inputs, that is to give its start back."""

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import report
import torch
from torch import Tensor

UNITS, BATCH, STEPS = 2, 32, 10
RATE, START_STD = 1e-4, 0.01
PLAIN, ZONED = PROBABILITIES = (0.0, 0.1)
UPDATES, EVERY, SEEDS = 100_000, 400, 5
ARRIVED = 0.1

NOTES = f"""\
    h(0) = x ~ N(0, I), ({BATCH}, {UNITS})        h(t) = (1 - m(t)) * h(t-1) + m(t) * (h(t-1) W),  t = 1 .. {STEPS}
    m(t) ~ Bernoulli(1 - z), ({UNITS},), one for the batch        loss = sum((h({STEPS}) - x)^2)

W starts at -I + {START_STD:g} N(0, 1) and is trained for {{updates:,}} updates by plain gradient descent at the rate
{RATE:g}, x and m drawn anew for each. Without zoneout the start all but solves the task, (-I)^{STEPS} = I. With it a unit
that is kept at some steps, whichever they are, must mean the same at all of them: W = I.

A task of the zoneout authors (Krueger et al. 2017, "Zoneout", arXiv 1606.01305), which stands in their code alone, with no
results: https://github.com/teganmaharaj/zoneout, zoneout_semantic_consistency.py, where all of the numbers above are from.
Its README would have it show that zoneout encourages "units to retain semantic consistency over time"; what that expects
of W is our reading. Added here: seeds, each with the same start, the same x and the same uniform numbers behind m for both
z; and the measure, that a run is at I or -I where the Frobenius norm of the difference is below {ARRIVED:g}
({2 * UNITS**0.5:.2f} lie between the two). Losses are the mean of the last {{every}} updates."""


class Point(NamedTuple):
    """Where all runs are."""

    updates: int
    weight: Tensor
    """W, (Z, S, 2, 2): probabilities, seeds."""
    loss: Tensor
    """The mean since the point before, (Z, S); not a number at the start."""

    def distance(self, sign: int) -> Tensor:
        """|W - sign I|, (Z, S)."""
        distance: Tensor = torch.linalg.matrix_norm(self.weight - sign * torch.eye(UNITS))
        return distance


def reconstruction(weight: Tensor, start: Tensor, masks: Tensor) -> Tensor:
    """The loss of every run; weight (..., 2, 2), start (..., B, 2), masks (T, ..., 1, 2), 1 where a unit is updated."""
    h = start
    for mask in masks.unbind():
        h = torch.lerp(h, h @ weight, mask)
    return (h - start).square().sum((-2, -1))


def train(seeds: int, updates: int, every: int) -> list[Point]:
    """All runs side by side in one tensor; a run draws by its own seed, for `every` updates at a time."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]

    def draw(sample: Callable[..., Tensor], *shape: int) -> Tensor:
        return torch.stack([sample(shape, generator=generator) for generator in generators], -3)

    one = START_STD * draw(torch.randn, UNITS, UNITS) - torch.eye(UNITS)
    weight = one.repeat(len(PROBABILITIES), 1, 1, 1).requires_grad_()
    points = [Point(0, weight.detach().clone(), torch.full(weight.shape[:2], math.nan))]
    probabilities = torch.tensor(PROBABILITIES).view(-1, 1, 1, 1)
    for done in range(every, updates + 1, every):
        starts = draw(torch.randn, every, BATCH, UNITS)
        masks = (draw(torch.rand, every, STEPS, 1, UNITS).unsqueeze(2) >= probabilities).float()
        total = torch.zeros(weight.shape[:2])
        for start, mask in zip(starts, masks, strict=True):
            loss = reconstruction(weight, start, mask)
            (gradient,) = torch.autograd.grad(loss.sum(), weight)
            with torch.no_grad():
                weight -= RATE * gradient
                total += loss
        points.append(Point(done, weight.detach().clone(), total / every))
    return points


def arrivals(points: list[Point], sign: int) -> list[list[float]]:
    """After how many updates every run, [z][seed], came to sign I to stay; infinite where it did not."""
    updates = torch.tensor([point.updates for point in [*points, points[-1]]], dtype=torch.float64)
    updates[-1] = math.inf
    there = torch.stack([point.distance(sign) < ARRIVED for point in points])
    staying = there.flip(0).long().cumprod(0).sum(0)
    return updates[len(points) - staying].tolist()


def conclusion(points: list[Point]) -> str:
    """Where the runs ended, and whether that is what zoneout's reason to be would have."""
    counts, expected = [], True
    for probability, at_plus, at_minus in zip(PROBABILITIES, arrivals(points, 1), arrivals(points, -1), strict=True):
        plus, minus = (sum(map(math.isfinite, updates)) for updates in (at_plus, at_minus))
        expected &= (minus if probability == PLAIN else plus) == len(at_plus)
        counts.append(f"z = {probability:g}: {plus} of {len(at_plus)} runs end at I, {minus} at -I.")
    moved = [updates for updates in arrivals(points, 1)[PROBABILITIES.index(ZONED)] if math.isfinite(updates)]
    if moved:
        counts.append(f"With zoneout they came to I after {min(moved):,.0f} to {max(moved):,.0f} updates.")
    verdict = "agrees" if expected else "does not agree"
    return (
        f"{' '.join(counts)} That {verdict} with the expectation: z = {PLAIN:g} stays at -I, z = {ZONED:g} goes to I."
    )


def table(points: list[Point]) -> list[list[str]]:
    """A line a run."""
    last, at_plus, at_minus = points[-1], arrivals(points, 1), arrivals(points, -1)
    lines = []
    for z, probability in enumerate(PROBABILITIES):
        for seed in range(last.loss.shape[1]):
            weights = [f"{value:.4f}" for value in last.weight[z, seed].flatten().tolist()]
            since = [f"{updates[z][seed]:,.0f}".replace("inf", "never") for updates in (at_plus, at_minus)]
            lines.append([f"{probability:g}", str(seed), *weights, f"{last.loss[z, seed]:.3g}", *since])
    return lines


def write(points: list[Point], file: Path) -> None:
    """A line a run and point, of the numbers as they are."""
    with file.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["z", "seed", "updates", "w11", "w12", "w21", "w22", "loss"])
        for z, probability in enumerate(PROBABILITIES):
            for seed in range(points[0].loss.shape[1]):
                for point in points:
                    numbers = [*point.weight[z, seed].flatten().tolist(), point.loss[z, seed].item()]
                    rows.writerow([probability, seed, point.updates, *(f"{number:.5g}" for number in numbers)])


def draw(points: list[Point], file: Path) -> None:
    """The diagonal of W, its distances from I and -I, and the loss, by update."""
    from matplotlib.figure import Figure  # half a second to import
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 8.5), layout="constrained")
    diagonal, distance, loss = figure.subplots(3, 1, sharex=True)
    updates = [point.updates for point in points]
    for z, (probability, colour) in enumerate(zip(PROBABILITIES, ("tab:blue", "tab:orange"), strict=True)):
        line = {"color": colour, "linewidth": 1}
        for unit in range(UNITS):
            diagonal.plot(updates, torch.stack([point.weight[z, :, unit, unit] for point in points]), **line)
        distance.plot(updates, torch.stack([point.distance(1)[z] for point in points]), **line)
        distance.plot(updates, torch.stack([point.distance(-1)[z] for point in points]), **line, linestyle="--")
        loss.plot(updates, torch.stack([point.loss[z] for point in points]), **line)
        loss.plot([], [], color=colour, label=f"z = {probability:g}")
    for style, label in (("-", "distance from I"), ("--", "distance from -I")):
        loss.plot([], [], style, color="grey", label=label)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    diagonal.set_ylabel("both diagonal entries of W")
    distance.set_ylabel("distance of W (Frobenius)")
    loss.set_ylabel("loss, sum over batch and units")
    loss.set_xlabel(f"updates; {points[0].loss.shape[1]} seeds each")
    loss.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (diagonal, distance, loss):
        axes.grid(alpha=0.25)
    figure.savefig(file, dpi=130)


def main() -> None:
    """Trains, writes the numbers, draws them and says what they mean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--every", type=int, default=EVERY, help="updates from point to point")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where csv, md and png go")
    arguments = parser.parse_args()
    updates, every = arguments.updates, arguments.every
    if updates % every:
        parser.error(f"--updates {updates} is no multiple of --every {every}")
    torch.set_num_threads(1)
    points = train(arguments.seeds, updates, every)
    name = arguments.output / Path(__file__).name
    write(points, name.with_suffix(".csv"))
    draw(points, name.with_suffix(".png"))
    report.write(
        str(name),
        "Semantic consistency",
        ["z", "seed", "W11", "W12", "W21", "W22", "loss", "at I since update", "at -I since update"],
        table(points),
        f"{conclusion(points)}\n\n{NOTES.format(updates=updates, every=every)}",
    )


if __name__ == "__main__":
    main()
