"""Write networks in forms that run without torchadder: c/ makes C99 code, onnx/ ONNX files, page/ an HTML page."""

from torchadder.export.c import export_c
from torchadder.export.onnx import export_onnx
from torchadder.export.page import export_page

__all__ = ["export_c", "export_onnx", "export_page"]
