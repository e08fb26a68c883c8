"""Cheap Bernoulli draws: on the CPU torch's generator is serial and slow, and masks are large."""

import torch
from torch import Tensor

from zoo.kernels import native
from zoo.kernels.untraced import tracing, untraced

_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # of splitmix64, as signed


def bernoulli(keep: float, *shape: int, device: torch.device | str = "cpu") -> Tensor:
    """Independent draws that are True with probability `keep`, as a bool tensor.

    Torch's generator gives one seed a call, so `torch.manual_seed` fixes the masks and a resumed run draws the same ones.
    On the CPU, element n of them comes from a hash of the seed and n: splitmix64 (Steele, Lea and Flood 2014,
    https://doi.org/10.1145/2714064.2660195), half of its 64 bits an element, compared with keep * 2**32. Where the draw is
    recorded or transformed (`torch.compile`, `torch.func`) it is torch's own.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}; a probability lies in [0, 1]")
    if torch.device(device).type != "cpu" or tracing():
        return torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(keep)
    return _on_the_cpu(round(keep * 2**32), shape)


@untraced
def _on_the_cpu(threshold: int, shape: tuple[int, ...]) -> Tensor:
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    if native.available():
        return native.bernoulli(seed, threshold, shape)
    return hashed_bernoulli(seed, threshold, shape)


def hashed_bernoulli(seed: int, threshold: int, shape: tuple[int, ...]) -> Tensor:
    """The native backend's draws in plain torch, bit for bit."""
    count = torch.Size(shape).numel()
    if threshold >= 2**32:
        return torch.ones(shape, dtype=torch.bool, device="cpu")
    z = torch.arange(1, (count + 1) // 2 + 1, device="cpu").mul_(_GOLDEN).add_(seed)
    for shift, factor in ((30, _MIX_1), (27, _MIX_2), (31, 1)):
        z.bitwise_xor_((z >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor)
    halves = z.view(torch.int32)[:count]  # the low half first, where the machine is little-endian
    return halves.bitwise_xor(-(2**31)).lt(threshold - 2**31).view(shape)
