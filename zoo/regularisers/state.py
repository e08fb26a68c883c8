"""Regularisers of the recurrent state: what draws the masks of `zoo.noise.Noise`.

A sequence is one call of the layer: in language modelling, one window of backpropagation. A layer may hold several
regularisers: `check_sites` when it is built, `draw_noise` at every call.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.arguments import check_choice
from zoo.kernels import bernoulli
from zoo.noise import GATES, Cell, Extent, Noise
from zoo.regularisers.base import Regulariser, dropout_probability, inverted_mask, probability

Period = Literal["step", "sequence"]
"""How long a mask lasts."""


class StateRegulariser(Regulariser):
    """Draws the masks of one sequence: random when training, their expectation when evaluating."""

    @abstractmethod
    def sites(self, cell: Cell) -> tuple[str, ...]:
        """The masks that `forward` fills for such a cell; raises `ValueError` where the cell has no place for it."""

    @abstractmethod
    def forward(self, extent: Extent) -> Noise:
        """The masks."""

    def _mask(self, p: float, extent: Extent, *shape: int) -> Tensor | None:
        """Bernoulli(1 - p) of that shape when training, the number 1 - p when evaluating; None for p = 0."""
        if p == 0:
            return None
        if self.training:
            return bernoulli(1 - p, *shape, device=extent.device)
        return torch.full((1, 1, 1), 1 - p, dtype=extent.dtype, device=extent.device)

    def _refuse(self, cell: Cell, why: str) -> ValueError:
        return ValueError(f"{type(self).__name__} has no place in a {cell.upper()}: {why}")


class Zoneout(StateRegulariser):
    """Keeps each unit's old value with a probability: `cell` for c and `hidden` for h, afresh at every step.

        c(t) = c(t-1) + m_c * (c' - c(t-1))        m_c ~ Bernoulli(1 - cell), (T, B, H)
        h(t) = h(t-1) + m_h * (h' - h(t-1))        m_h ~ Bernoulli(1 - hidden), (T, B, H)

    Acts on the masks ckeep and hkeep; a GRU and a simple network have `hidden` alone. Evaluation takes the expectations
    1 - cell and 1 - hidden for the masks. `shared` draws one mask for both states, as the paper does on permuted MNIST, and
    wants `cell` equal to `hidden`. Krueger et al. 2017, "Zoneout: regularizing RNNs by randomly preserving hidden
    activations", arXiv 1606.01305, section 3. (The authors' scripts for text take the probability of the new value: their
    0.05 is 0.95 here.) Raises `ValueError` for a probability outside [0, 1], or a shared mask of two probabilities.
    """

    probabilities = ("cell", "hidden")

    def __init__(self, cell: float = 0.0, hidden: float = 0.0, shared: bool = False) -> None:
        super().__init__()
        self.cell, self.hidden, self.shared = probability("cell", cell), probability("hidden", hidden), shared
        if shared and cell != hidden:
            raise ValueError(f"a shared mask has one probability, but cell is {cell} and hidden is {hidden}")

    def sites(self, cell: Cell) -> tuple[str, ...]:
        if cell == "lstm":
            return ("ckeep", "hkeep")
        if self.cell != 0:
            raise self._refuse(cell, f"cell is {self.cell} and the {cell.upper()} has no cell state; set hidden alone")
        return ("hkeep",)

    def forward(self, extent: Extent) -> Noise:
        has_cell = "ckeep" in self.sites(extent.cell)
        shape = extent.time, extent.batch, extent.hidden_size
        hkeep = self._mask(self.hidden, extent, *shape)
        if not has_cell:
            return Noise(hkeep=hkeep)
        return Noise(ckeep=hkeep if self.shared else self._mask(self.cell, extent, *shape), hkeep=hkeep)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, shared={self.shared}"


class RecurrentDropout(StateRegulariser):
    """Drops elements of the update to the state with probability p, unscaled; the memory itself is never dropped.

        c' = f * c(t-1) + i * g * m                (LSTM)
        h' = z * h(t-1) + (1 - z) * n * m          (GRU)
        h' = tanh(W x(t) + R (m * h(t-1)) + b)     (simple network)        m ~ Bernoulli(1 - p)

    Acts on the mask upd, of a simple network on rec; drawn afresh at every step or once a sequence, (T, B, H) or (1, B, H).
    Evaluation multiplies by 1 - p. Semeniuta, Severyn and Barth 2016, "Recurrent dropout without memory loss", arXiv
    1603.05118, section 3. Raises `ValueError` for p outside [0, 1] or another `per`.
    """

    probabilities = ("p",)

    def __init__(self, p: float, per: Period = "step") -> None:
        super().__init__()
        check_choice("per", per, get_args(Period))
        self.p, self.per = probability("p", p), per

    def sites(self, cell: Cell) -> tuple[str, ...]:
        return ("rec",) if cell == "rnn" else ("upd",)

    def forward(self, extent: Extent) -> Noise:
        (site,) = self.sites(extent.cell)
        steps = extent.time if self.per == "step" else 1
        return Noise(**{site: self._mask(self.p, extent, steps, extent.batch, extent.hidden_size)})

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, per={self.per!r}"


class InputGateDropout(RecurrentDropout):
    """Drops elements of the input gate with probability p, afresh at every step, unscaled.

        c' = f * c(t-1) + (m * i) * g              (LSTM)
        h' = z * h(t-1) + m * (1 - z) * n          (GRU)                   m ~ Bernoulli(1 - p), (T, B, H)

    Acts on the mask upd, for m * i * g is the same product whichever factor is masked, so it is `RecurrentDropout` per step
    under the name that it has beside zoneout: Krueger et al. 2017, arXiv 1606.01305, section 4. Evaluation multiplies by
    1 - p, which is what the flag of the authors' code, `--drop_prob_igates`, sets. Raises `ValueError` for p outside [0, 1].
    """

    def __init__(self, p: float) -> None:
        super().__init__(p)

    def sites(self, cell: Cell) -> tuple[str, ...]:
        if cell == "rnn":
            raise self._refuse(cell, "it has no input gate")
        return super().sites(cell)


class StateDropout(StateRegulariser):
    """Drops units of h(t-1) on their way into the gates with probability p, the same ones at every step.

        a(t) = R (m / (1 - p) * h(t-1))                    tied
        a_k(t) = R_k (m_k / (1 - p) * h(t-1))              untied, k over the gates        m, m_k ~ Bernoulli(1 - p)

    Acts on the mask rec, (1, B, H) or, untied, (1, gates, B, H); the carried state itself is not dropped. Evaluation leaves
    the state alone. Gal and Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural
    networks", arXiv 1512.05287, section 4 (the mask z_h); the inputs' half, z_x, is `LockedDropout`. Raises `ValueError` for
    p outside [0, 1).
    """

    probabilities = ("p",)

    def __init__(self, p: float, untied: bool = False) -> None:
        super().__init__()
        self.p, self.untied = dropout_probability("p", p), untied

    def sites(self, cell: Cell) -> tuple[str, ...]:
        return ("rec",)

    def forward(self, extent: Extent) -> Noise:
        if not self.training or self.p == 0:
            return Noise()
        masks = (1, GATES[extent.cell]) if self.untied else (1,)
        shape = *masks, extent.batch, extent.hidden_size
        return Noise(rec=inverted_mask(self.p, *shape, dtype=extent.dtype, device=extent.device))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, untied={self.untied}"


class CellDropout(StateRegulariser):
    """Drops units of an LSTM's cell state with probability p, the same ones at every step, unscaled (RNNDrop).

        c(t) = m * (f * c(t-1) + i * g)        m ~ Bernoulli(1 - p), (1, B, H)

    Acts on the mask cmul. Evaluation multiplies by 1 - p at every step, as the paper does, so that what was written t steps
    ago comes through scaled by (1 - p)**t, though in training a kept unit keeps all of it: the loss of memory that
    Semeniuta et al. 2016 (arXiv 1603.05118) criticise. Moon et al. 2015, "RNNDrop: a novel dropout for RNNs in
    ASR", ASRU. Raises `ValueError` for p outside [0, 1].
    """

    probabilities = ("p",)

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = probability("p", p)

    def sites(self, cell: Cell) -> tuple[str, ...]:
        if cell != "lstm":
            raise self._refuse(cell, "it has no cell state")
        return ("cmul",)

    def forward(self, extent: Extent) -> Noise:
        (site,) = self.sites(extent.cell)
        return Noise(**{site: self._mask(self.p, extent, 1, extent.batch, extent.hidden_size)})


class StochasticDepth(StateRegulariser):
    """Skips a whole step of an example with probability p: the state stays as it was in all units.

        (c, h)(t) = (c, h)(t-1) + m * ((c', h') - (c, h)(t-1))        m ~ Bernoulli(1 - p), (T, B, 1)

    Acts on the masks ckeep and hkeep, which are one and the same; a GRU and a simple network have hkeep alone. Evaluation
    takes 1 - p for the mask. Krueger et al. 2017, arXiv 1606.01305, section 4, after Huang et al. 2016, "Deep networks with
    stochastic depth", arXiv 1603.09382. Raises `ValueError` for p outside [0, 1].
    """

    probabilities = ("p",)

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = probability("p", p)

    def sites(self, cell: Cell) -> tuple[str, ...]:
        return ("ckeep", "hkeep") if cell == "lstm" else ("hkeep",)

    def forward(self, extent: Extent) -> Noise:
        return Noise(**dict.fromkeys(self.sites(extent.cell), self._mask(self.p, extent, extent.time, extent.batch, 1)))


def check_sites(regularisers: Iterable[StateRegulariser], cell: Cell) -> None:
    """Raises `ValueError` where two regularisers claim the same mask of such a cell, or the cell has no place for one."""
    claims: dict[str, StateRegulariser] = {}
    for regulariser in regularisers:
        for site in regulariser.sites(cell):
            if site in claims:
                names = f"{type(claims[site]).__name__} and {type(regulariser).__name__}"
                raise ValueError(f"{names} both claim noise.{site} of the {cell.upper()}, which has room for one")
            claims[site] = regulariser


def draw_noise(regularisers: Iterable[StateRegulariser], extent: Extent) -> Noise:
    """The masks of several regularisers together, drawn in their order; raises `ValueError` where two fill the same."""
    return Noise.union(regulariser(extent) for regulariser in regularisers)
