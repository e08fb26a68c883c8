"""What went wrong on the user's side of the fence."""


class UserError(ValueError):
    """Bad input that the user can mend; the message names what came, what was expected and what to do.

    The command line prints it as one line without a traceback.
    """
