"""Count the operations of a network, layer by layer."""

from torchadder.counts.opcount import Row, Summary, summary

__all__ = ["Row", "Summary", "summary"]
