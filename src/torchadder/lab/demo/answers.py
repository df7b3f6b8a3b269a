"""What the page asks: what the program is, and what it says to the pixels of a drawing."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from torchadder.data.augment import CENTRE as CROP
from torchadder.data.preprocessing import CENTRE
from torchadder.engine.classifier import Classifier
from torchadder.quant import file as files
from torchadder.quant.program import Logits

DRAWING = (28, 28)  # pixels of a grey drawing, those of an MNIST digit
TOLD = {"model": "{}", "op": "{}", "dataset": "{}", "bits": "{} bits"}


class Answers:
    """Those of the program in ``file``. Not for several threads at once, whose times would be each other's.

    Attributes:
        shape: (C, H, W) of the pixels of a question: 28 x 28 where they are grey, else the program's own size.

    Raises UserError as Classifier does.
    """

    def __init__(self, file: Path, threads: int = 1):
        self._file = file
        self._classifier = Classifier(file, threads)
        self._last: Any = files.read(file)[0].steps[-1]
        channels, *size = self._classifier.engine.shape
        self._size = (size[0], size[1])
        self.shape = (channels, *(DRAWING if channels == 1 else self._size))

    def about(self) -> dict[str, Any]:
        """What the page says of the program; plain values for JSON."""
        engine, about = self._classifier.engine, self._classifier.engine.about
        return {
            "file": self._file.name,
            "told": [text.format(str(about[name])[:80]) for name, text in TOLD.items() if name in about],
            "pixels": [*self.shape],
            "input": [*engine.shape],
            "crop": CROP if self._classifier.preprocessing.part == CENTRE else None,
            "names": self._classifier.names,
            "last": self._last.kind,
            "features": self._last.weight[0].numel(),
            "threads": engine.threads,
            "kernels": list(dict.fromkeys(engine.kernels())),
        }

    def __call__(self, content: bytes) -> dict[str, Any]:
        """Logits of pixels uint8 (C, H, W), the distances behind them, and the milliseconds that the engine took.

        A distance is what an adder layer at the end sums up for a class, |feature - filter| in 8-bit codes; None
        after other layers. Numbers that are not finite are None.
        """
        pixels = np.frombuffer(content, np.uint8).reshape(self.shape)
        image = self._classifier.preprocessing.prepared(pixels, self._size)
        start = time.perf_counter()
        (logits,) = self._classifier.engine(image)
        seconds = time.perf_counter() - start
        distances = _distances(logits, self._last.epilogue) if self._last.kind == "adder" else None
        return {
            "logits": _plain(logits),
            "distances": None if distances is None else _plain(distances),
            "milliseconds": 1e3 * seconds,
        }


def _distances(logits: Tensor, epilogue: Logits) -> Tensor:
    """The whole numbers that became ``logits``, sum * gain + bias."""
    return ((logits.double() - epilogue.bias) / epilogue.gain).round()


def _plain(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
