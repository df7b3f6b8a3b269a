"""Write a quantized network in a form that runs without Python: c/ makes C99 source code."""

from torchadder.export.c import export_c

__all__ = ["export_c"]
