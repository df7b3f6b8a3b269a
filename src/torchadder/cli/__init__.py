"""Run the command line, `torchadder VERB`: each verb is a file that calls the library; `app.py` lists them.

No module here imports torch at its top: `--help` and a mistyped option must not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (default: those of the process) and return its exit code.

    0: done. 1: a fault of torchadder. 2: a mistake of the user. 130: interrupted. An error is one line on stderr.
    """
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        print('error: the command line needs typer and rich: pip install "torchadder[cli]"', file=sys.stderr)
        return 2
    from torchadder.cli.app import run

    return run(list(sys.argv[1:] if arguments is None else arguments))
