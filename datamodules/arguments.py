"""Checks of what a user gives."""

from zoo.errors import UserError


def check_positive(name: str, value: int) -> None:
    """Raises `UserError` where `value` is below 1."""
    if value < 1:
        raise UserError(f"{name} is {value}; it must be 1 or more")


def check_shares(batch_size: int, world_size: int) -> None:
    """Raises `UserError` where so many processes cannot share a batch evenly."""
    if batch_size % world_size:
        raise UserError(f"batch_size {batch_size} cannot be shared evenly by {world_size} processes")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises `UserError` where `value` is none of `choices`."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
