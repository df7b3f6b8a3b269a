"""Convert any network to adder or binary layers in one call, and back."""

from .conversion import Conversion, Row, convert

__all__ = ["Conversion", "Row", "convert"]
