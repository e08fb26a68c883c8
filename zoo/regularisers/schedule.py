"""Schedules of the drop probabilities."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from zoo.arguments import check_positive
from zoo.regularisers.base import Regulariser


class CurriculumDropout:
    """Raises every drop probability from 0 to its target as training goes on.

        p(t) = p_target * (1 - exp(-gamma * t))        t in updates

    The targets are the probabilities that the modules' regularisers (`Regulariser.probabilities`) have when this is built,
    which sets them to p(0) = 0; call `step` after every update. Where evaluation depends on the probability (zoneout,
    recurrent dropout) it takes the current one; `finish` puts the targets back. Morerio et al. 2017, "Curriculum dropout",
    arXiv 1703.06229, with gamma = 10 / the number of updates of the whole run.

    Raises `ValueError` for a gamma that is not positive and finite, or modules without a probability.
    """

    def __init__(self, modules: nn.Module | Iterable[nn.Module], gamma: float) -> None:
        check_positive(gamma=gamma)
        roots = [modules] if isinstance(modules, nn.Module) else list(modules)
        found = [module for root in roots for module in root.modules() if isinstance(module, Regulariser)]
        self._targets = [(module, name, getattr(module, name)) for module in found for name in module.probabilities]
        if not any(target for _, _, target in self._targets):
            raise ValueError("modules has no regulariser with a drop probability to schedule, or all of them are 0")
        self.gamma = gamma
        self.at(0)

    def at(self, updates: int) -> None:
        """Sets the probabilities that hold after so many updates."""
        self.updates = updates
        rise = -math.expm1(-self.gamma * updates)
        for module, name, target in self._targets:
            setattr(module, name, target * rise)

    def step(self) -> None:
        """Sets the probabilities of the next update."""
        self.at(self.updates + 1)

    def finish(self) -> None:
        """Sets every probability to its target; the count of updates stays."""
        for module, name, target in self._targets:
            setattr(module, name, target)

    def state_dict(self) -> dict[str, Any]:
        """The count of updates, and gamma."""
        return {"updates": self.updates, "gamma": self.gamma}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, with the gamma of then; the targets are this one's."""
        self.gamma = state_dict["gamma"]
        self.at(state_dict["updates"])
