"""Quantize a trained network: uint8 activations and filters, 32-bit accumulators, one integer program.

    program = torchadder.quantize(model, calibration)          # or quant.finetune, which trains on first
    program.save("net.tadder", mean=..., std=..., classes=...) # for Engine, the command line and C
    program = quant.Program.load("net.tadder")

The data flows through the files in this order: calibration, graph, lowering, program, file. finetuning and deploy use
them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from torchadder.quant.calibration import Method
from torchadder.quant.finetuning import finetune
from torchadder.quant.lowering import Lowering
from torchadder.quant.program import Program

__all__ = ["Program", "finetune", "quantize"]


def quantize(model: nn.Module, calibration: Iterable[Tensor], bits: int = 8, method: Method = "mse") -> Program:
    """Return the integer program of a trained ``model``, which stays as it is.

    Args:
        model: layers of torchadder.nn, nn.Conv2d and nn.Linear, with batch normalisation, ReLU, sums of a layer and
            a shortcut, max and average pooling; torch.fx must trace it. It ends in the logits.
        calibration: batches of images as the model takes them, float32 (N, C, H, W), all of one size; the ranges of
            the activations are measured on them. Some hundred training images are enough.
        bits: of activations and of adder filters, 2 to 8. Ordinary layers keep 8-bit weights, binary layers signs.
        method: how the range of an activation is chosen: "max" covers all numbers, "percentile" all but 0.01% at
            either end, "mse" has the smallest squared error.

    An adder layer compares its filters with its input, so both have one scale. Its filters are clamped to the range of
    the input; what lies beyond it is a constant for each filter, which the bias takes up without loss.

    Raises UserError for a part of the network that has no integer form; the message names the part.
    """
    return Lowering(copy.deepcopy(model).eval(), list(calibration), bits, method).program()
