"""What every kernel asks of its tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor


def autocasts(device: str) -> bool:
    """Whether autocast would change the dtype that products run in on this type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def check(given: Mapping[str, Tensor | None], shapes: Mapping[str, tuple[int, ...]], inputs: Tensor) -> None:
    """Raises `ValueError` for a tensor of another shape than expected, or not of the inputs' dtype and device."""
    for name, value in given.items():
        if value is None:
            continue
        if value.shape != shapes[name]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shapes[name]}")
        if value.dtype != inputs.dtype:
            raise ValueError(f"{name} is {value.dtype}, the inputs are {inputs.dtype}")
        if value.device != inputs.device:
            raise ValueError(f"{name} is on {value.device}, the inputs are on {inputs.device}")
