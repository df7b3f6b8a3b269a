"""The command line, ``torchadder VERB``: one file a verb, no logic of its own; ``app`` lists the verbs."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (default: the process's) and return its exit code.

    0: done. 1: our mistake. 2: the user's. 130: interrupted. Errors are one line on stderr, see ``app.run``.
    """
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print('error: the command line needs typer and rich: pip install "torchadder[cli]"', file=sys.stderr)
        return 2
    from torchadder.cli.app import run

    return run(list(sys.argv[1:] if arguments is None else arguments))
