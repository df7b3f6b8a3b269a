"""Compute in float32 what an integer program does: every quantized value and every weight is rounded.

In the backward pass rounding is the identity (straight-through estimator; Bengio et al., arXiv 1308.3432), and the
gradient is 0 where a value lies beyond its range.

Filters of an adder layer are not clamped to the range of x. Clamping would change nothing, since
|x - w| = |x - clip(w)| + |w - clip(w)|, and without it they learn by the layer's own gradient rule. Binary layers need
no rounding, because they take the signs of their weights and inputs themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchadder.errors import UserError
from torchadder.quant.builder import KINDS
from torchadder.quant.calibration import Recorder
from torchadder.quant.graph import BATCH_NORM, Network, operator_of
from torchadder.quant.lowering import Lowering
from torchadder.quant.steps import Kind
from torchadder.quant.values import QuantizedValue, quantize_adder_weight, quantize_conv_weight

MOMENTUM = 0.1  # of running statistics, where a layer averages over all batches


class FakeQuantized(Recorder):
    """Compute in float32 what the program of a captured network does, with the parameters of the network.

    Attributes:
        training: batch normalisation takes the statistics of the batch and updates the running ones, as in training.
        momentum: of that update; None is the layer's own.
    """

    def __init__(self, network: Network, lowering: Lowering):
        """Take a new ``lowering`` of the network. This calls its ``program``, which may be called only once."""
        lowering.program()
        super().__init__(network, lowering.ranged)
        self.lowering, self.training = lowering, False
        self.momentum: float | None = None

    @torch.no_grad()
    def estimate_statistics(self, batches: Iterable[Tensor]) -> None:
        """Set the running statistics of batch normalisation to their mean over ``batches``."""
        self.training = True
        for number, images in enumerate(batches, 1):
            self.momentum = 1 / number
            self(images)
        self.training, self.momentum = False, None

    def compute(self, n: fx.Node) -> Any:
        args = self.fetch_args_kwargs_from_env(n)[0]
        if n in self.lowering.sources:
            return run_layer(n, args, self.lowering.sources[n], self.lowering.qmax)
        if self.training and n.target is BATCH_NORM and not n.meta.get("moved"):
            *tensors, _, momentum, eps, cudnn = args
            if tensors[0].numel() == tensors[0].shape[1]:
                raise UserError(
                    "a batch has one image, and its values no variance for batch normalisation: pass drop_last=True to "
                    "the DataLoader"
                )
            return BATCH_NORM(*tensors, True, self.momentum or momentum or MOMENTUM, eps, cudnn)
        return super().compute(n)

    def run_node(self, n: fx.Node) -> Any:
        y, value = super().run_node(n), self.lowering.values.get(n)
        if not isinstance(value, QuantizedValue):
            return y
        for source in map(self.lowering.values.get, n.all_input_nodes):  # flattening and max pooling keep the scale
            if isinstance(source, QuantizedValue) and (source.index == value.index or source.scale is value.scale):
                return y
        return fake_quantize(y, value, self.lowering.qmax if n.op != "placeholder" else self.lowering.image_qmax)


def fake_quantize(y: Tensor, value: QuantizedValue, qmax: int) -> Tensor:
    """Round numbers to the real ones that 0..qmax stand for."""
    form = () if len(value.scale) == 1 else (-1, *[1] * (y.dim() - 2))
    scale, zero_point = (t.to(y).view(form) for t in (value.scale, value.zero_point))
    q = (y / scale + zero_point).clamp(0, qmax)
    q = q + ((q + 0.5).floor() - q).detach()  # half goes up, as in the program: 0 stays 0 or above for binary layers
    return (q - zero_point) * scale


def run_layer(n: fx.Node, args: Sequence[Any], x: QuantizedValue, qmax: int) -> Tensor:
    """Run a layer on the quantized value ``x``, with its weight rounded to what its quantized weight stands for."""
    kind, weight = KINDS[operator_of(n)], args[1]
    rounded = weight + (_rounded_weight(kind, weight.detach(), x, qmax) - weight).detach()
    y: Tensor = n.target(args[0], rounded, *args[2:])  # type: ignore[operator]
    if kind == "adder" and args[7]:  # recentred: adds the sum of the weight before rounding, as the program does
        excess = (weight.abs() - rounded.abs()).detach().flatten(1).sum(1)
        y = y + excess.view(-1, *[1] * (y.dim() - 2))
    return y


def _rounded_weight(kind: Kind, weight: Tensor, x: QuantizedValue, qmax: int) -> Tensor:
    if kind == "binary" or (weight.dim() == 2 and weight.shape[1] != math.prod(x.shape)):
        return weight  # it takes signs itself; and the weights of a pixel that is repeated are added up before
    filters = weight.double().cpu().view(len(weight), *(weight.shape[1:] if weight.dim() == 4 else x.shape))
    if kind == "adder":
        q, clipped = quantize_adder_weight(filters, x, qmax)
        real = (q - x.zero_point) * x.scale + (filters - clipped)
    else:
        q, scale = quantize_conv_weight(filters, x)
        real = q * scale.view(-1, 1, 1, 1) / x.by_filter(x.scale, filters)
    return real.to(weight).view_as(weight)
