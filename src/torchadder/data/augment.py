"""Augmentation of whole batches where they are: the random crop and flip of the CIFAR recipes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
