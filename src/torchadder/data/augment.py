"""Augmentation: of whole batches where they are, as for CIFAR, and of images as they are decoded, as for ImageNet."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from torchadder.data.pixels import Crop

CENTRE = 224 / 256  # of the shorter side: what a centre crop of 224 leaves of an image resized to 256


@dataclass(frozen=True)
class Augmentation:
    """A crop at a random place out of the image with ``padding`` black pixels around it; every second is mirrored.

    The choices are drawn on the CPU and apart from their use, so that one seed augments alike on every device.
    """

    padding: int = 4

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The choices for ``count`` images, int64 (3, count): first row, first column, and 1 where mirrored."""
        corner = torch.randint(0, 2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.randint(0, 2, (1, count), generator=generator)
        return torch.cat([corner, mirrored])

    def apply(self, images: Tensor, choices: Tensor) -> Tensor:
        """Augmented images of the same shape and type: (N, C, H, W), in which 0 is black, and choices (3, N)."""
        top, left, mirrored = choices
        height, width = images.shape[2:]
        padded = F.pad(images, (self.padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # every crop that there is, as a view
        crops = windows[torch.arange(len(images), device=images.device), :, top, left]
        return torch.where(mirrored.bool().view(-1, 1, 1, 1), crops.flip(3), crops)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A part of the image of random area and shape at a random place; every second is mirrored.

    ``scale``: bounds of its share of the image's area; ``ratio``: bounds of its width by its height, drawn evenly on
    a logarithmic scale. After Szegedy et al., "Going deeper with convolutions", 2015.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, width: int, height: int, source: random.Random) -> Crop:
        """The crop of an image of that size: the first of ten that fits in, else the largest one in its middle."""
        mirrored = source.random() < 0.5
        for _ in range(10):
            area = width * height * source.uniform(*self.scale)
            ratio = math.exp(source.uniform(*map(math.log, self.ratio)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, upper = source.randint(0, width - w), source.randint(0, height - h)
                return Crop((left, upper, left + w, upper + h), mirrored)
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        left, upper = (width - w) // 2, (height - h) // 2
        return Crop((left, upper, left + w, upper + h), mirrored)


def centre_crop(width: int, height: int) -> Crop:
    """The square in the middle of an image of that size that images are tested on."""
    side = CENTRE * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return Crop((left, upper, left + side, upper + side))
