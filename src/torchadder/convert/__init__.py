"""convert: any network multiplication-free in one line, and back."""

from .conversion import convert
from .report import Conversion, Row

__all__ = ["Conversion", "Row", "convert"]
