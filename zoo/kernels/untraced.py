"""What `torch.compile` leaves to Python: a loop over steps that it would unroll, and compiled code that it cannot see."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def tracing() -> bool:
    """Whether somebody records or transforms what is done: `torch.compile` and its kin, `torch.jit.trace`, `torch.func`."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return torch.compiler.is_compiling() or torch._C._is_tracing() or transformed


def traced(tensor: Tensor) -> bool:
    """Whether somebody records or transforms what is done with the tensor."""
    return tracing() or type(tensor) not in (Tensor, nn.Parameter)


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
