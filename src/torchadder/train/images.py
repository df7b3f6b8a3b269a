"""Check that a network takes the images of a data set, before long work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchadder.data import Dataset, Split
from torchadder.errors import UserError, in_one_line
from torchadder.models import Model


def check_images(model: nn.Module, dataset: Dataset, name: str) -> None:
    """Run ``model``, called ``name`` in messages, on one black image of the size of the data set; it stays as it was.

    Raises UserError where it fails, or does not return one logit for each class.
    """
    channels, height, width = dataset.shape
    training, dtype = model.training, torch.float32
    if isinstance(dataset.test, Split) and dataset.test.pixels.is_floating_point():
        dtype = dataset.test.pixels.dtype  # the loader passes these on as they are
    image = torch.zeros(1, *dataset.shape, dtype=dtype)
    try:
        with torch.no_grad():
            logits = model.eval()(image)
    except Exception as error:  # A network of the user may raise anything.
        advice = ""
        if isinstance(model, Model) and model.input_size[1:] != (height, width):
            advice = f"; it is made for {model.input_size[1]} x {model.input_size[2]}"
            advice += f": name it with size={model.input_size[1]}" if ":" in dataset.name else ""
        raise UserError(
            f"dataset={dataset.name}: {name} does not take its images of {height} x {width} with {channels} channels "
            f"({in_one_line(error, 150)}){advice}"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, dataset.num_classes):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
        classes = dataset.num_classes
        raise UserError(
            f"dataset={dataset.name} has {classes} classes, but {name} returns {found} for an image: choose another"
        )
