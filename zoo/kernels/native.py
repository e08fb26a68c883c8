from torch import Tensor
from zoo.kernels.loops import Loops as Loops

CELLS = ()


def available() -> bool:
    return False


def bernoulli(seed: int, threshold: int, shape: tuple[int, ...]) -> Tensor:
    raise NotImplementedError
