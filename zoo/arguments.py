"""Checks of what a user gives: each raises a `UserError` that names the argument, its value and what was expected."""

import math
import reprlib
from collections.abc import Iterable, Sized
from numbers import Integral, Real

from zoo.errors import UserError

_NAMES: dict[type, str] = {Integral: "whole number", Real: "number", Iterable: "list", Sized: "list"}


def check_counts(**values: int | None) -> None:
    """Each is 1 or more, or None."""
    for name, value in values.items():
        if value is None:
            continue
        check_type(name, value, Integral)
        if value < 1:
            raise UserError(f"{name} is {value}; it must be 1 or more")


def check_positive(**values: float | None) -> None:
    """Each is above 0 and finite, or None."""
    for name, value in values.items():
        if value is None:
            continue
        check_type(name, value, Real)
        if not 0 < value < math.inf:
            raise UserError(f"{name} is {value}; it must be positive and finite")


def check_not_negative(**values: float) -> None:
    """Each is 0 or more and finite."""
    for name, value in values.items():
        check_type(name, value, Real)
        if not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}; it must be finite and 0 or more")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def check_type(name: str, value: object, *expected: type) -> None:
    """`value` is of one of the types."""
    if isinstance(value, expected):
        return
    names = " or ".join(_NAMES.get(each, each.__name__) for each in expected)
    if isinstance(value, type):
        raise UserError(f"{name} is the class {value.__name__}; expected a {names}: {value.__name__}(...)")
    raise UserError(f"{name} is {reprlib.repr(value)}, a {type(value).__name__}; expected a {names}")


def check_shares(batch_size: int, world_size: int) -> None:
    """So many processes can share a batch evenly."""
    if batch_size % world_size:
        raise UserError(f"batch_size {batch_size} cannot be shared evenly by {world_size} processes")
