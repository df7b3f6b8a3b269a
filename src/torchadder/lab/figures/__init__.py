"""The figures of the paper's analysis, made of one's own runs: `torchadder figures`."""

from torchadder.lab.figures.gallery import FIGURES, Made, make
from torchadder.lab.figures.material import Material

__all__ = ["FIGURES", "Made", "Material", "make"]
