"""Quantize a trained network: uint8 activations and filters, 32-bit accumulators, one integer program.

    program = torchadder.quantize(model, calibration)          # or quant.finetune, which trains on first
    program.save("net.tadder", mean=..., std=..., classes=...) # for Engine, the command line and C
    program = quant.Program.load("net.tadder")

The data flows through the files in this order: graph, calibration, lowering (with builder and values), program (of
steps), file. fake_quantized computes in float32 what the program will; normalization and finetuning use it, deploy all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from torchadder.quant.calibration import Method, Recorder, image_batches, observe
from torchadder.quant.finetuning import finetune
from torchadder.quant.graph import capture
from torchadder.quant.lowering import Lowering
from torchadder.quant.normalization import CORRECTED_BELOW, correct_normalization
from torchadder.quant.program import Program

__all__ = ["Program", "finetune", "obstacles", "quantize"]


def quantize(
    model: nn.Module | ExportedProgram, calibration: Tensor | Iterable[Any], bits: int = 8, method: Method = "mse"
) -> Program:
    """Return the integer program of a trained ``model``, which stays as it is.

    Args:
        model: a network that torch.export traces, or one that it has exported. What is lowered are the operators that
            run: subclasses, hooks and functions are traced into. docs/engine.md lists those with an integer form. It
            ends in the logits; a softmax or log_softmax after them is left out, with a warning, since the largest
            logit stays the largest.
        calibration: batches of images as the model takes them, float32 (N, C, H, W), all of one size; the ranges of
            the activations are measured on them. Some hundred training images are enough. Of tuples, as a DataLoader
            has, the first part is taken.
        bits: of activations and of adder filters, 2 to 8. Ordinary layers keep 8-bit weights, binary layers signs.
        method: how the range of an activation is chosen: "max" covers all numbers, "percentile" all but 0.01% at
            either end, "mse" has the smallest squared error.

    With fewer than 8 bits the statistics of batch normalisation are corrected for what rounding does to them, on the
    calibration images.

    An adder layer compares its filters with its input, so both have one scale. Its filters are clamped to the range of
    the input; what lies beyond it is a constant for each filter, which the bias takes up without loss.

    Raises UserError for parts of the network that have no integer form; the message names all of them.
    """
    batches = image_batches(calibration)
    network = capture(model, batches[0])
    network.warn_of_softmax()
    draft = Lowering(network, bits, method)
    draft.program()
    network.check_against_original(batches[0])
    statistics = observe(Recorder(network, draft.ranged), batches)
    if bits < CORRECTED_BELOW:
        correct_normalization(network, Lowering(network, bits, method, statistics), batches)
    return Lowering(network, bits, method, statistics).program()


def obstacles(model: nn.Module | ExportedProgram, images: Tensor, bits: int = 8) -> list[str]:
    """Return a line for each part of ``model`` without integer form: its place, what it is, what to do.

    ``images``: a batch (N, C, H, W), of which only shape and dtype matter. quantize takes the model where the list is
    empty.
    """
    lowering = Lowering(capture(model, image_batches(images)[0]), bits, "max")
    lowering.run()
    return lowering.obstacles
