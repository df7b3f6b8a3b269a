"""Quantisation-aware fine-tuning: training goes on with the numbers that the integer program will compute with.

In the forward pass every value that becomes codes is rounded to its grid, and every weight to its codes. In the
backward pass rounding is the identity (straight-through estimator; Bengio et al., arXiv 1308.3432), and nothing flows
where a value lies beyond its codes. A filter of an adder layer may: |x - w| = |x - clip(w)| + |w - clip(w)|, so it is
left where it is and learns by the layer's own rule. Binary layers round by themselves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn

from torchadder.data import Loader
from torchadder.errors import UserError
from torchadder.nn import Adder, Binary
from torchadder.optim import AdaptiveLR
from torchadder.quant.calibration import Method, observe
from torchadder.quant.lowering import LAYERS, Codes, Lowering, adder_codes, conv_codes
from torchadder.quant.program import Program

STATISTICS_BATCHES = 50


def finetune(
    model: nn.Module,
    batches: Loader,
    calibration: Iterable[Tensor],
    bits: int = 8,
    method: Method = "mse",
    *,
    epochs: int = 1,
    lr: float = 0.01,
    eta: float = 0.02,
    epoch_done: Callable[[int, float], None] | None = None,
) -> Program:
    """The integer program of a trained ``model`` after training on; the model itself stays as it is.

    Args:
        model, calibration, bits, method: as in quantize.
        batches: training images and labels, augmented as in the training before: batch normalisation learns their
            statistics, and takes them once more from up to STATISTICS_BATCHES of them when the weights are final.
        epochs: over ``batches``, whose generator decides their order; nothing else is random.
        lr: of SGD with momentum 0.9, falling to 0 in a cosine. eta: of AdaptiveLR for the adder layers; a tenth of
            what training takes, since filters only have to settle.
        epoch_done: called after each epoch with its number, from 1, and its mean loss, the cross-entropy.

    The ranges of activations are taken at the start of each epoch, from the network as it is rounded until then, and
    stand still within it; the program has the last ones. Raises UserError as quantize does, and where the loss is
    not finite; ValueError for fewer than one epoch.
    """
    if epochs < 1:
        raise ValueError(f"epochs={epochs} is out of range: expected at least 1")
    images = list(calibration)
    model = copy.deepcopy(model).eval()
    lowering = Lowering(model, images, bits, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if any(isinstance(module, Adder) for module in model.modules()):
        AdaptiveLR(optimizer, eta)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    rounded = round_values(model, lowering)
    for epoch in range(1, epochs + 1):
        if epoch > 1:
            lowering = Lowering(model, images, bits, method, observe(rounded.eval(), images))
            rounded = round_values(model, lowering)
        rounded.train()
        loss_sum = 0.0
        for pixels, labels in batches:
            loss = F.cross_entropy(rounded(pixels), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            loss_sum += loss.item()
        if not math.isfinite(loss_sum):
            raise UserError(
                f"NaN or infinite numbers in epoch {epoch} of fine-tuning: look at the images, or take a smaller lr"
            )
        if epoch_done is not None:
            epoch_done(epoch, loss_sum / len(batches))
    update_bn((pixels for pixels, _ in islice(batches, STATISTICS_BATCHES)), rounded)
    return Lowering(model.eval(), images, bits, method, lowering.statistics).program()


def round_values(model: nn.Module, lowering: Lowering) -> fx.GraphModule:
    """``model`` with its layers, computing with the values that its program will have, up to float32's rounding.

    ``lowering`` is that of the model, and is used up.
    """
    lowering.program()
    module = fx.GraphModule(model, lowering.graph)
    inputs = {node: next(iter(node.all_input_nodes), None) for node in module.graph.nodes}  # before others come between
    for node, before in inputs.items():
        layer, codes = lowering.target(node), lowering.values.get(node)
        source = lowering.values.get(before) if before else None
        if isinstance(layer, LAYERS) and not isinstance(layer, Binary):
            assert isinstance(source, Codes), "a layer computes with codes"
            node.target = f"{node.name}_rounded"
            module.add_submodule(node.target, _Layer(layer, source, lowering.levels))
        handed_on = isinstance(source, Codes) and isinstance(codes, Codes) and source.scale is codes.scale
        if isinstance(codes, Codes) and not handed_on:
            levels = lowering.levels if node.op != "placeholder" else lowering.image_levels
            module.add_submodule(f"{node.name}_codes", _Codes(codes, levels))
            with module.graph.inserting_after(node):
                rounded = module.graph.call_module(f"{node.name}_codes", (node,))
            node.replace_all_uses_with(rounded, lambda user: user is not rounded)  # noqa: B023  called at once
    module.recompile()
    return module


class _Codes(nn.Module):
    """A value rounded to what its codes 0..levels stand for."""

    def __init__(self, codes: Codes, levels: int):
        super().__init__()
        form = () if len(codes.scale) == 1 else (-1, 1, 1)
        self.scale, self.zero = (t.float().view(form) for t in (codes.scale, codes.zero))
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        codes = (x / self.scale + self.zero).clamp(0, self.levels)
        codes = codes + (codes.round() - codes).detach()
        return (codes - self.zero) * self.scale


class _Layer(nn.Module):
    """A layer on codes ``x``, with its weight rounded to what its codes stand for."""

    def __init__(self, layer: Any, x: Codes, levels: int):
        super().__init__()
        self.layer, self.x, self.levels = layer, x, levels

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        rounded = weight + (self._rounded() - weight).detach()
        y = functional_call(self.layer, {"weight": rounded}, (x,))
        if isinstance(self.layer, Adder) and self.layer.recenter:  # with the weight itself, as the program does
            excess = (weight.abs() - rounded.abs()).detach().flatten(1).sum(1)
            y = y + excess.view(-1, *[1] * (y.dim() - 2))
        return y

    @torch.no_grad()
    def _rounded(self) -> Tensor:
        weight, x = self.layer.weight, self.x
        filters = weight.double() if weight.dim() == 4 else weight.double().view(len(weight), *x.shape)
        if isinstance(self.layer, Adder):
            codes, clipped = adder_codes(filters, x, self.levels)
            real = (codes - x.zero) * x.scale + (filters - clipped)
        else:
            codes, gain = conv_codes(filters, x)
            real = codes * gain.view(-1, 1, 1, 1) / x.scale.expand(x.shape[0]).view(-1, 1, 1)
        return real.to(weight.dtype).view_as(weight)
