"""Define the exception for mistakes of a caller."""


class UserError(ValueError):
    """Report a mistake or a missing thing that the caller can correct.

    The text is one line: what is wrong, with which value (``name=value``), and what to do. The command line prints it
    and exits with code 2.
    """
