"""Very many names as one string."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np


class Names:
    """The names by their place. A million short ones take 30 MB, as Python objects ten times that in every worker."""

    def __init__(self, names: Iterable[str]):
        joined, ends = bytearray(), [0]
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        self._joined, self._ends = bytes(joined), np.array(ends, np.int64)

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._joined[self._ends[index] : self._ends[index + 1]])
