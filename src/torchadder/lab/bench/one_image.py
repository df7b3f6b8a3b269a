"""One image through one network on one thread: float32 in torch and, where it can be lowered, the 8-bit engine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from torchadder.engine import Engine
from torchadder.errors import UserError
from torchadder.models import Model
from torchadder.quant import quantize

from .layers import FORMATS
from .networks import with_statistics
from .timing import interleaved, medians, threads

FLOAT, ENGINE = "float32, torch", "8 bits, engine"
CALIBRATION = 4  # images


def measure(model: Model, size: Sequence[int], repetitions: int = 11) -> list[dict[str, Any]]:
    """Milliseconds of one image (C, H, W) of ``size``, medians of turns: one row for torch, one for the engine.

    In torch the module runs as it is, in the better memory format. Its batch normalisation takes the statistics of
    random images, as which the image is random too; speed depends on neither. Where the engine cannot run the network,
    its milliseconds are None and ``reason`` says why.
    """
    torch.manual_seed(0)
    images = torch.randn(CALIBRATION, *size)
    with torch.inference_mode(), threads(1):
        model = with_statistics(copy.deepcopy(model), images)
        candidates: dict[str, Callable[[], object]] = {}
        for name, layout in FORMATS.items():
            module = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
            candidates[name] = partial(module, images[:1].clone(memory_format=layout))
        reason = None
        try:
            candidates[ENGINE] = partial(Engine(quantize(model, [images], method="max"), threads=1), images[:1])
        except UserError as error:
            reason = str(error)
        found = {name: 1e3 * seconds for name, seconds in medians(interleaved(candidates, repetitions)).items()}
    return [
        {"runtime": FLOAT, "milliseconds": min(found[name] for name in FORMATS), "n": repetitions, "reason": None},
        {"runtime": ENGINE, "milliseconds": found.get(ENGINE), "n": repetitions, "reason": reason},
    ]
