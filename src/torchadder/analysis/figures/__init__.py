"""The figures of the paper's analysis, made of one's own runs: `torchadder figures`."""

from .gallery import FIGURES, Made, make
from .material import Material

__all__ = ["FIGURES", "Made", "Material", "make"]
