"""Write a quantized network in a form that runs without Python: c/ makes C99 source code, page/ an HTML page."""

from torchadder.export.c import export_c
from torchadder.export.page import export_page

__all__ = ["export_c", "export_page"]
