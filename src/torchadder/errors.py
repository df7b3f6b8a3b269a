"""Define the exception for mistakes of a caller, and what its messages are made of."""

from collections.abc import Sequence


class UserError(ValueError):
    """Report a mistake or a missing thing that the caller can correct.

    The text is one line: what is wrong, with which value (``name=value``), and what to do. The command line prints it
    and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_one_line(error: BaseException, most: int = 200) -> str:
    """Return all of an error's text in one line of at most ``most`` characters, or the name of its class."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def shortened(names: Sequence[str], separator: str = ", ", shown: int = 8) -> str:
    """Join the first names in one line, and count the others."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return separator.join(names[:shown]) + more
