"""What a network answers to test images: confusion matrix, accuracy by class, and its most confident mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchadder.data import Loader


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class.

    ``index``: its place in the split, from 0. ``image``: as the network saw it, float32 (C, H, W). ``confidence``:
    the softmax probability of ``predicted``.
    """

    index: int
    image: Tensor
    label: int
    predicted: int
    confidence: float


@dataclass(frozen=True)
class Predictions:
    """The answers of a network of K classes to N images.

    ``confusion``: int64 (K, K), images by label and predicted class. ``mistakes``: the most confident first.
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
        """In percent."""
        return 100 * self.correct / self.images

    @property
    def class_accuracy(self) -> Tensor:
        """Of each class, in percent: float64 (K,), NaN where it has no image."""
        return 100 * self.confusion.diag().double() / self.confusion.sum(1)

    def confusions(self, count: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: label, predicted class, images; those that never happened left out."""
        wrong = self.confusion - self.confusion.diag().diag()
        images, places = wrong.flatten().sort(descending=True, stable=True)
        pairs = zip(places[:count].tolist(), images[:count].tolist(), strict=True)
        return [(*divmod(place, len(wrong)), number) for place, number in pairs if number]


@torch.no_grad()
def predict(forward: Callable[[Tensor], Tensor], batches: Loader, classes: int, keep: int = 24) -> Predictions:
    """The answers to all images of ``batches``, with the ``keep`` mistakes that are the most confident.

    ``forward``: images -> logits (N, classes); a module is set to evaluation mode. The likeliest class is the first
    of the largest logits.
    """
    if isinstance(forward, nn.Module):
        forward.eval()
    confusion = torch.zeros(classes * classes, dtype=torch.int64)
    mistakes: list[Mistake] = []
    seen = 0
    for images, labels in batches:
        logits = forward(images).double()  # in float32 too many probabilities are 1
        predicted = logits.argmax(1)
        confidence = logits.softmax(1).gather(1, predicted[:, None]).flatten()
        confusion += torch.bincount(labels * classes + predicted, minlength=classes * classes)
        wrong = (predicted != labels).nonzero().flatten()
        surest = wrong[confidence[wrong].sort(descending=True, stable=True).indices[:keep]]
        mistakes += [
            Mistake(seen + i, images[i].clone(), int(labels[i]), int(predicted[i]), confidence[i].item())
            for i in surest.tolist()
        ]
        mistakes = sorted(mistakes, key=lambda mistake: -mistake.confidence)[:keep]
        seen += len(labels)
    return Predictions(confusion.view(classes, classes), mistakes)
