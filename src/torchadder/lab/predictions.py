"""Classify test images and count: confusion matrix, accuracy by class, most confident mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchadder.data import Loader


@dataclass(frozen=True)
class Mistake:
    """Hold an image that was classified wrongly.

    ``index``: its index in the split. ``image``: the input of the network, float32 (C, H, W). ``confidence``: the
    softmax probability of ``predicted``.
    """

    index: int
    image: Tensor
    label: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class Predictions:
    """Hold the predictions of a network with K classes.

    ``confusion``: int64 (K, K), number of images by label and predicted class. ``mistakes``: the most confident first.
    """

    confusion: Tensor
    mistakes: list[Mistake]

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float:
        """Return the accuracy over all images, in percent."""
        return 100 * self.correct / self.images

    @property
    def class_accuracy(self) -> Tensor:
        """Return the accuracy of each class in percent: float64 (K,), NaN for a class without images."""
        return 100 * self.confusion.diag().double() / self.confusion.sum(1)

    def confusions(self, count: int) -> list[tuple[int, int, int]]:
        """Return the up to ``count`` most frequent mistakes as (label, predicted class, images)."""
        wrong = self.confusion - self.confusion.diag().diag()
        images, positions = wrong.flatten().sort(descending=True, stable=True)
        pairs = zip(positions[:count].tolist(), images[:count].tolist(), strict=True)
        return [(*divmod(position, len(wrong)), number) for position, number in pairs if number]


@torch.no_grad()
def predict(forward: Callable[[Tensor], Tensor], batches: Loader, classes: int, keep: int = 24) -> Predictions:
    """Classify all images of ``batches`` and keep the ``keep`` most confident mistakes.

    ``forward`` maps images to logits (N, classes); a module is set to evaluation mode. The predicted class is the
    first of the largest logits.
    """
    if isinstance(forward, nn.Module):
        forward.eval()
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    mistakes: list[Mistake] = []
    seen = 0
    for images, labels in batches:
        logits = forward(images).double()  # In float32 too many probabilities round to 1.
        predicted = logits.argmax(1)
        confidence = logits.softmax(1).gather(1, predicted[:, None]).flatten()
        confusion += torch.bincount(labels * classes + predicted, minlength=classes * classes)
        wrong = (predicted != labels).nonzero().flatten()
        most_confident = wrong[confidence[wrong].sort(descending=True, stable=True).indices[:keep]]
        mistakes += [
            Mistake(seen + i, images[i].clone(), int(labels[i]), int(predicted[i]), confidence[i].item())
            for i in most_confident.tolist()
        ]
        mistakes = sorted(mistakes, key=lambda mistake: -mistake.confidence)[:keep]
        seen += len(labels)
    return Predictions(confusion.view(classes, classes), mistakes)
