"""What a network costs: operation counts, layer by layer."""

from .opcount import Row, Summary, summary

__all__ = ["Row", "Summary", "summary"]
