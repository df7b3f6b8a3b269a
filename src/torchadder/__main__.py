"""``python -m torchadder`` is the command ``torchadder``, which torchrun starts as a module."""

from torchadder.cli import main

if __name__ == "__main__":  # worker processes that are spawned import this file
    raise SystemExit(main())
