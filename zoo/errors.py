"""What went wrong on the user's side of the fence."""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """Bad input that the user can mend; the message names what came, what was expected and what to do.

    The command line prints it as one line without a traceback.
    """


def suggestion(given: str, known: Sequence[str], count: int, cutoff: float) -> str:
    """What a misspelt name may have been: at most so many that are alike, else all that there are."""
    close = difflib.get_close_matches(given, known, count, cutoff)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known) or 'none'}."


def in_one_line(error: Exception) -> str:
    """The kind of an exception and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
