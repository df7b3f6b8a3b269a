"""The one exception that means: the caller can fix this. Its text is one line: what, which value, what to do."""


class UserError(ValueError):
    """A mistake or a missing thing on the user's side; the command line prints it as one line and exits with 2."""
