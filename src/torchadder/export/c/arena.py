"""Assign memory to the values of a network: buffers whose live ranges do not meet share bytes of one arena."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNMENT = 4  # bytes


@dataclass
class Buffer:
    """Hold ``size`` bytes from step ``first_use`` to step ``last_use``, at ``offset`` in the arena."""

    size: int
    first_use: int
    last_use: int
    offset: int = 0

    @property
    def end(self) -> int:
        return self.offset + -(-self.size // ALIGNMENT) * ALIGNMENT

    def meets(self, other: Buffer) -> bool:
        return self.first_use <= other.last_use and other.first_use <= self.last_use


def assign_offsets(buffers: list[Buffer]) -> int:
    """Give each buffer the lowest gap that is free in its live range, the largest first; return the arena's bytes."""
    assigned: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size):
        buffer.offset = 0
        for other in sorted(assigned, key=lambda b: b.offset):
            if not buffer.meets(other):
                continue
            if buffer.end <= other.offset:
                break
            buffer.offset = max(buffer.offset, other.end)
        assigned.append(buffer)
    return max((buffer.end for buffer in assigned), default=0)
