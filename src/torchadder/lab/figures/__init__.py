"""Draw the figures of the AdderNet paper from trained runs: weights, filters, features, gradients, curves, outputs."""

from torchadder.lab.figures.gallery import FIGURES, FigureFiles, write_figures
from torchadder.lab.runs import FigureInputs

__all__ = ["FIGURES", "FigureFiles", "FigureInputs", "write_figures"]
