"""What `torch.compile` leaves to Python: a loop over steps that it would unroll, and compiled code that it cannot see."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


_MODES = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE
"""Of `make_fx`, and of tensors that have a shape and no numbers."""


def tracing() -> bool:
    """Whether somebody records or transforms what is done: `torch.compile` and its kin, `torch.jit.trace`, `torch.func`,
    `make_fx`, fake tensors, differentiation forwards."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in _MODES)
        or forward_ad._current_level >= 0
    )


def traced(*tensors: Tensor | None) -> bool:
    """Whether somebody records or transforms what is done with one of the tensors, or it has no memory of its own."""
    return tracing() or not all(tensor is None or has_memory(tensor) for tensor in tensors)


def has_memory(tensor: Tensor) -> bool:
    """Whether the tensor's numbers lie at its address: not those of a class that does every operation in its own way."""
    return type(tensor).__torch_dispatch__ is torch._C._disabled_torch_dispatch_impl


def untraced(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, at which a traced graph ends, to go on behind it: what `torch.compile` does with `torch.nn.LSTM`.

    `torch.compiler.disable`, but without the second that importing Dynamo takes, where nobody else has.
    """
    disabled: list[Callable[Arguments, Result]] = []

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return call
