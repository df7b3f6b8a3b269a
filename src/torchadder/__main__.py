"""Run the command line as `python -m torchadder`, which is how torchrun starts it."""

from torchadder.cli import main

if __name__ == "__main__":  # spawned worker processes import this file
    raise SystemExit(main())
