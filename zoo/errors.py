"""What went wrong on the user's side of the fence."""


class UserError(ValueError):
    """Bad input that the user can mend; the message names what came, what was expected and what to do.

    The command line prints it as one line without a traceback.
    """


def in_one_line(error: Exception) -> str:
    """The kind of an exception and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
