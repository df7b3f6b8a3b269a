"""Batches of a split that lives in memory on the training device: no workers, no copy but the batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torchadder.data.registry import Split
from torchadder.errors import UserError


class Batches:
    """Iterates over (images float32 (B, C, H, W), labels int64 (B,)) on ``device``.

    With ``train`` the order is shuffled anew in each iteration, by a generator of its own that starts from
    ``seed``, and the last partial batch is dropped (the paper's recipe); without, the order is the split's
    and every image comes once. ``memory_format`` is that of the images.

    Raises UserError when ``train`` and the split is smaller than one batch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        train: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ):
        if train and len(split) < batch_size:
            raise UserError(
                f"batch_size {batch_size} is more than the {len(split)} training images; choose a smaller one"
            )
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        self.batch_size, self.train, self.memory_format = batch_size, train, memory_format
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size if self.train else -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels), generator=self._generator) if self.train else None
        if order is not None:
            order = order.to(self.labels.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            if order is None:
                images = self.images[start : start + self.batch_size]
                labels = self.labels[start : start + self.batch_size]
            else:
                chosen = order[start : start + self.batch_size]
                images, labels = self.images[chosen], self.labels[chosen]
            yield images.contiguous(memory_format=self.memory_format), labels

    def state_dict(self) -> dict[str, Tensor]:
        """The generator's state: iteration continues from it with the same orders."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
