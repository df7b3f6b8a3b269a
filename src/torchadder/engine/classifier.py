"""An engine with what its file says of images and classes: what predict and the demo need."""

from __future__ import annotations

import json
from pathlib import Path

from torchadder.data.preprocessing import Preprocessing
from torchadder.engine import Engine
from torchadder.errors import UserError


class Classifier:
    """Opens a ``.tadder`` file that torchadder quantize wrote.

    Attributes:
        engine, preprocessing: what computes the logits, and what makes its input of an image.
        names: of the classes; their numbers where the file has none.

    Raises UserError where the file is no sound program, or does not say what to do with an image.
    """

    def __init__(self, file: Path, threads: int | None = None):
        self.engine = Engine(file, threads)
        try:
            self.preprocessing = Preprocessing.from_dict(self.engine.about, self.engine.shape[0])
        except ValueError as error:
            raise UserError(f"cannot tell from {file} what to do with an image: {error}; quantize it again") from error
        self.names = _names(self.engine)


def _names(engine: Engine) -> list[str]:
    numbers = [str(label) for label in range(engine.classes)]
    try:
        names = json.loads(engine.about.get("classes", "[]"))
    except (TypeError, ValueError, RecursionError):
        return numbers
    good = isinstance(names, list) and len(names) == len(numbers) and all(isinstance(name, str) for name in names)
    return names if good else numbers
