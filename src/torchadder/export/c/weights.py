"""Pack the weights of a layer into the words that the C kernels read: blocks of 4 filters, whose words alternate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

BLOCK = 4  # filters
ROUND = 16  # values of a patch that the tile of an adder or conv layer takes in one round of its loop


@dataclass(frozen=True)
class Packed:
    """Hold packed weights, uint32 [blocks][header + steps][4 filters].

    ``values``: of a patch, rounded up to whole steps. ``steps``: words of one filter. The header of a block, a word for
    each filter, is the sum of its weights (adder layers only).
    """

    words: np.ndarray
    values: int
    steps: int

    @property
    def block_words(self) -> int:
        return int(self.words[0].size)


def pack(op: str, weight: Tensor, groups: int, four_bits: bool) -> Packed:
    """Pack weights (C_out, C_in / groups, kh, kw). ``four_bits``: two weights of an adder layer share a byte."""
    filters = weight.permute(0, 2, 3, 1).flatten(1).numpy()
    if groups > 1:  # whole blocks for each group
        of_groups = filters.reshape(groups, -1, filters.shape[1])
        filters = np.pad(of_groups, ((0, 0), (0, -of_groups.shape[1] % BLOCK), (0, 0))).reshape(-1, filters.shape[1])
    if op == "binary":
        rows = np.packbits(_padded(filters == 1, 32), axis=1, bitorder="little")
        return _interleaved(rows, values=8 * rows.shape[1])
    if not four_bits:
        rows = _padded(filters, ROUND).view(np.uint8)
        return _interleaved(rows, values=rows.shape[1], header=op == "adder")
    values = _padded(filters, ROUND)
    halves = values.reshape(len(values), -1, 2, 4)
    rows = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(values), -1)
    return _interleaved(rows, values=values.shape[1], header=True, sums=values)


def pack_depthwise(weight: Tensor) -> np.ndarray:
    """Pack weights (C, 1, kh, kw): bytes [taps][C], as words."""
    taps = weight.permute(2, 3, 0, 1).flatten().numpy().view(np.uint8)
    return np.pad(taps, (0, -len(taps) % 4)).view("<u4")


def _padded(filters: np.ndarray, multiple: int) -> np.ndarray:
    """Return filters with zeros after each one, and filters of zeros after the last."""
    return np.pad(filters, ((0, -len(filters) % BLOCK), (0, -filters.shape[1] % multiple)))


def _interleaved(rows: np.ndarray, values: int, header: bool = False, sums: np.ndarray | None = None) -> Packed:
    """Return the words of rows of bytes, four rows a block; with a header the sums of ``sums`` or of the rows."""
    words = np.ascontiguousarray(rows).view("<u4")
    steps = words.shape[1]
    if header:
        total = (rows if sums is None else sums).sum(1, dtype=np.uint32)
        words = np.concatenate([total[:, None], words], axis=1)
    blocks = words.reshape(-1, BLOCK, words.shape[1]).transpose(0, 2, 1)
    return Packed(np.ascontiguousarray(blocks), values, steps)
