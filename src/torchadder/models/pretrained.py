"""Find the trained networks that the package holds.

Each is a checkpoint, model-operator.safetensors, or an integer program, model.tadder, in torchadder/pretrained.
SHA256SUMS there lists them, and README.md says where each comes from.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from torchadder.errors import UserError

FOLDER = Path(__file__).parents[1] / "pretrained"
SUMS = "SHA256SUMS"  # "digest  file", a line for each file
SUFFIX, PROGRAM = ".safetensors", ".tadder"


def list_pretrained() -> list[str]:
    """Return the names of the trained networks in the package, sorted: "lenet5bn-adder", ..."""
    return sorted(file.removesuffix(SUFFIX) for file in _sums() if file.endswith(SUFFIX))


def pretrained_file(name: str) -> Path:
    """Return the checkpoint of a trained network in the package, after comparing its hash.

    Raises UserError for a name that list_pretrained does not have, and where the file was changed or lost.
    """
    file = FOLDER / f"{name}{SUFFIX}"
    if file.name not in _sums():
        raise UserError(
            f"pretrained=True: there are no weights of {name} in the package, only of {', '.join(list_pretrained())}; "
            "train it, and load its run with from_pretrained"
        )
    return _intact(file)


def find_program(name: str) -> str:
    """Return the path of an integer program in the package, such as "pico", after comparing its hash.

    Any other ``name``, and that of an existing path, is returned as it is. Raises UserError for a changed or lost file.
    """
    file = name if name.endswith(PROGRAM) else f"{name}{PROGRAM}"
    return name if Path(name).exists() or file not in _sums() else str(_intact(FOLDER / file))


def _intact(file: Path) -> Path:
    """Return ``file`` of the package, after comparing its hash."""
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); install torchadder again") from error
    if digest != _sums()[file.name]:
        raise UserError(f"{file} was changed: its hash is not the one in {SUMS}; install torchadder again")
    return file


def _sums() -> dict[str, str]:
    lines = (FOLDER / SUMS).read_text(encoding="utf-8").splitlines()
    return {file: digest for digest, file in (line.split() for line in lines)}
