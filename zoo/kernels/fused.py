"""The Triton backend: each step's element-wise pass as one kernel (`zoo.kernels.triton_steps`), around cuBLAS products.

Triton comes with torch's CUDA builds and is imported on first use. Where it cannot start, one line in the log says so,
and plain torch takes its place.
"""

import logging
import os
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch

_LOG = logging.getLogger(__name__)
_OLDEST = 70
"""The compute capability that Triton needs, times ten."""


def available() -> bool:
    """Whether Triton is here and has a GPU to run on, or its interpreter (`TRITON_INTERPRET=1`), which needs none."""
    if find_spec("triton") is None:
        return False
    return os.environ.get("TRITON_INTERPRET") == "1" or (torch.cuda.is_available() and _starts())


@cache
def _starts() -> bool:
    """Triton builds its launcher with a C compiler and Python's headers, which not every machine has."""
    from triton.runtime import driver

    try:
        target = driver.active.get_current_target()
        if target.backend == "cuda" and target.arch < _OLDEST:
            raise RuntimeError(f"the GPU's compute capability is {target.arch / 10}, Triton's kernels need 7.0")
    except Exception as error:
        _LOG.warning("Triton cannot start, so recurrent layers run slower, in plain torch: %s", error)
        return False
    return True


def pointwise() -> ModuleType:
    """`zoo.kernels.pointwise` in Triton."""
    from zoo.kernels import triton_steps

    return triton_steps
