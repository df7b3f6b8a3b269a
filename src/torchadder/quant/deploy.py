"""Choose data set, calibration images and file metadata for quantizing and testing a trained checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchadder.data import Dataset, Loader, list_datasets, load_dataset, open_batches
from torchadder.data.preprocessing import Preprocessing
from torchadder.errors import UserError
from torchadder.quant.calibration import SEVERAL
from torchadder.train import Recipe
from torchadder.train.loop import largest_share
from torchadder.train.run import holds_run, saved_recipe

CALIBRATION_BATCH = 32  # images; small, because all values of the network for one batch are in memory at once
FINETUNE_BATCH = 128  # images; fewer would make an epoch slower


def matching_dataset(
    source: object,
    name: str | None,
    trained_on: str | None,
    data_dir: Path | None,
    channels: int | None,
    classes: int | None,
    size: tuple[int, int] | None = None,
    *,
    partial: bool = False,
    on_error: str = "stop",
) -> Dataset:
    """Return the data set ``name`` for the network in ``source``, or the one that it was ``trained_on``.

    Args:
        source: the checkpoint or program, for messages.
        name, trained_on: of the data sets; None for both raises UserError.
        channels, classes: of the network's input and output; None where it does not say.
        size: height and width of the images; None where the network takes any.
        data_dir, partial, on_error: as in load_dataset.

    Raises UserError where its images or classes do not fit the network.
    """
    wanted = trained_on if name is None else name
    if wanted is None:
        raise UserError(f"{source} does not say what it was trained on: pass dataset={'|'.join(list_datasets())}")
    try:
        images = load_dataset(wanted, data_dir, partial=partial, on_error=on_error)
    except UserError as error:
        if name is not None:
            raise
        raise UserError(f"{error}; {source} was trained on them: pass dataset=NAME for other images") from error
    if channels not in (None, images.in_chans) or classes not in (None, images.num_classes):
        raise UserError(
            f"{source} takes {channels} channels and knows {classes} classes; dataset={images.name} has "
            f"{images.in_chans} and {images.num_classes}: choose another"
        )
    found = images.shape[1:]
    if size not in (None, found):
        expected, has = (f"{height} x {width}" for height, width in (size, found))
        raise UserError(
            f"{source} takes images of {expected}; those of dataset={images.name} have {has}: choose another"
        )
    return images


def calibration_images(dataset: Dataset, count: int = 512, seed: int = 0, workers: int | None = None) -> list[Tensor]:
    """Return about ``count`` random training images, not augmented, in batches of one size.

    A smaller data set gives all of its images. ``seed`` chooses them; ``workers`` as in open_batches.
    """
    count = min(count, len(dataset.train))
    number = -(-count // CALIBRATION_BATCH)
    batches = open_batches(dataset.train, count // number, train=True, seed=seed, workers=workers)
    return [images for images, _ in islice(batches, number)]


def gives_one_answer(forward: Callable[[Tensor], Tensor], batches: Iterable[Tensor], sizes: Tensor) -> bool:
    """Say whether ``forward`` gives nearly all images of ``batches`` one class, though they are of several.

    ``sizes``: the number of images of each class in the whole split, (K,). Nearly all: the share of the class is nine
    tenths of the way from that of the largest class to 100%. False for fewer than SEVERAL images.
    """
    answers, usual = torch.cat([forward(images).argmax(1) for images in batches]).bincount(), largest_share(sizes)
    return int(answers.sum()) >= SEVERAL and usual < 1 and largest_share(answers) >= usual + 0.9 * (1 - usual)


def finetuning_batches(dataset: Dataset, checkpoint: Path, seed: int = 0, workers: int | None = None) -> Loader:
    """Return the training images in batches for fine-tuning, augmented where the training of ``checkpoint`` did so."""
    return open_batches(
        dataset.train,
        min(FINETUNE_BATCH, len(dataset.train)),
        train=True,
        augment=dataset.augmentation if was_augmented(checkpoint) else None,
        seed=seed,
        workers=workers,
    )


def was_augmented(checkpoint: Path) -> bool:
    """Return whether the run of ``checkpoint`` augmented its images; True for a checkpoint outside a run.

    Fine-tuning must do the same: batch normalisation has the statistics of those images, and loses accuracy on others.
    """
    recipe = recipe_of(checkpoint)
    return recipe.augment if recipe else True


def recipe_of(checkpoint: Path) -> Recipe | None:
    """Return the recipe of the run of ``checkpoint``; None for one outside a run."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return saved_recipe(folder) if holds_run(folder) else None


def image_metadata(dataset: Dataset) -> dict[str, Any]:
    """Return the arguments of Program.save that describe the images and classes, as far as the data set knows them."""
    found: dict[str, Any] = {}
    if preprocessing := Preprocessing.of(dataset):
        mean, std = preprocessing.normalization
        found |= {"mean": mean, "std": std, "part": preprocessing.part}
    return {**found, "classes": [*dataset.classes]} if dataset.classes else found
