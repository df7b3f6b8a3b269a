"""Quantisation: from a trained network to an integer program (uint8 activations and filters, 32-bit sums)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from torchadder.quant.calibration import Method
from torchadder.quant.lowering import Lowering
from torchadder.quant.program import Program

__all__ = ["Program", "quantize"]


def quantize(model: nn.Module, calibration: Iterable[Tensor], bits: int = 8, method: Method = "mse") -> Program:
    """The integer program of a trained ``model``, which stays as it is.

    Args:
        model: layers of torchadder.nn, nn.Conv2d and nn.Linear, with batch normalisation, ReLU, sums of a layer and
            a shortcut, max and average pooling; torch.fx must trace it. It ends in the logits.
        calibration: batches of images as the model takes them, float32 (N, C, H, W), all of one size: what ranges of
            activations are taken from. Training images; some hundreds will do.
        bits: of activations and of adder filters, 2 to 8. Ordinary and binary layers keep 8-bit codes and signs.
        method: the range of an activation: "max", all that was seen; "percentile", all but 0.01% at either end;
            "mse", the range with the smallest squared error.

    An adder layer compares its filters with its input, so both have one scale; filters are clamped to the range of the
    input without loss. Raises UserError for a part of the network that has no integer form, which it names.
    """
    return Lowering(copy.deepcopy(model).eval(), list(calibration), bits, method).program()
