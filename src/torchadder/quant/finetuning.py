"""Fine-tune a network for quantization: training continues with the rounding that its integer program will do.

In the forward pass every quantized value and every weight is rounded ("fake quantization"). In the backward pass
rounding is the identity (straight-through estimator; Bengio et al., arXiv 1308.3432), and the gradient is 0 where a
value lies beyond its range.

Filters of an adder layer are not clamped to the range of x. Clamping would change nothing, since
|x - w| = |x - clip(w)| + |w - clip(w)|, and without it they learn by the layer's own gradient rule. Binary layers need
no rounding, because they take the signs of their weights and inputs themselves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn

from torchadder.errors import UserError
from torchadder.nn import Adder, Binary
from torchadder.optim import AdaptiveLR
from torchadder.quant.calibration import Method, observe
from torchadder.quant.graph import LAYERS
from torchadder.quant.lowering import Lowering, QuantizedValue, quantize_adder_weight, quantize_conv_weight
from torchadder.quant.program import Program

STATISTICS_BATCHES = 50
LEARNING_RATE = 0.01


class LabelledBatches(Protocol):
    """Iterate over (images, labels) and know the number of batches: a torch DataLoader, or torchadder.data.Loader."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def __len__(self) -> int: ...


def finetune(
    model: nn.Module,
    batches: LabelledBatches,
    calibration: Iterable[Tensor],
    bits: int = 8,
    method: Method = "mse",
    *,
    epochs: int = 1,
    lr: float = LEARNING_RATE,
    eta: float = 0.02,
    epoch_done: Callable[[int, float], None] | None = None,
) -> Program:
    """Return the integer program of a trained ``model`` after fine-tuning a copy of it; the model stays as it is.

    Calibration alone loses little with 8 bits; with 4 bits or fewer one or two epochs bring most of the accuracy back.

        program = torchadder.quant.finetune(model, train_loader, calibration, bits=4, epochs=2, lr=0.01)

    Args:
        model, calibration, bits, method: as in quantize.
        batches: training images float32 (N, C, H, W) and labels int64 (N,), in a new order each epoch, augmented as
            in the training before: batch normalisation updates its statistics. When the weights are final, it
            recomputes them from the first STATISTICS_BATCHES batches.
        epochs: passes over ``batches``; nothing but the batches may be random.
        lr: learning rate of SGD with momentum 0.9 on the cross-entropy; it falls to 0 in a cosine.
        eta: of AdaptiveLR for the adder layers; a tenth of the default in training, because the filters change little.
        epoch_done: called after each epoch with its number, from 1, and its mean loss.

    The range of each activation is measured at the start of each epoch on the fake-quantized network and stays fixed
    during the epoch; the program has the ranges of the last one.

    Raises UserError as quantize does, for epochs or lr out of range, and where the loss is not finite.
    """
    if epochs < 1:
        raise UserError(f"epochs={epochs} is out of range: expected at least 1")
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"lr={lr} is out of range: expected a finite number above 0")
    images = list(calibration)
    model = copy.deepcopy(model).eval()
    lowering = Lowering(model, images, bits, method)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    if any(isinstance(module, Adder) for module in model.modules()):
        AdaptiveLR(optimizer, eta)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    rounded = fake_quantize(model, lowering)
    for epoch in range(1, epochs + 1):
        if epoch > 1:
            lowering = Lowering(model, images, bits, method, observe(rounded.eval(), images))
            rounded = fake_quantize(model, lowering)
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


def fake_quantize(model: nn.Module, lowering: Lowering) -> fx.GraphModule:
    """Return a module that shares the layers of ``model`` and computes what its program does, in float32.

    ``lowering``: a new Lowering of ``model``. This function calls its ``program``, which may be called only once.
    """
    lowering.program()
    module = fx.GraphModule(model, lowering.graph)
    inputs = {node: next(iter(node.all_input_nodes), None) for node in module.graph.nodes}  # before nodes are inserted
    for node, before in inputs.items():
        layer, value = lowering.target(node), lowering.values.get(node)
        source = lowering.values.get(before) if before else None
        if isinstance(layer, LAYERS) and not isinstance(layer, Binary):
            assert isinstance(source, QuantizedValue), "a layer reads quantized values"
            node.target = f"{node.name}_rounded"
            module.add_submodule(node.target, _FakeQuantizedLayer(layer, source, lowering.qmax))
        is_rounded = (  # flattening and max pooling keep the scale of their input, which is rounded already
            isinstance(source, QuantizedValue) and isinstance(value, QuantizedValue) and source.scale is value.scale
        )
        if isinstance(value, QuantizedValue) and not is_rounded:
            qmax = lowering.qmax if node.op != "placeholder" else lowering.image_qmax
            module.add_submodule(f"{node.name}_quantized", _FakeQuantize(value, qmax))
            with module.graph.inserting_after(node):
                rounded = module.graph.call_module(f"{node.name}_quantized", (node,))
            node.replace_all_uses_with(rounded, lambda user: user is not rounded)  # noqa: B023  called at once
    module.recompile()
    return module


class _FakeQuantize(nn.Module):
    """Round a value to the real numbers that 0..qmax stand for."""

    def __init__(self, value: QuantizedValue, qmax: int):
        super().__init__()
        form = () if len(value.scale) == 1 else (-1, 1, 1)
        self.scale, self.zero_point = (t.float().view(form) for t in (value.scale, value.zero_point))
        self.qmax = qmax

    def forward(self, x: Tensor) -> Tensor:
        q = (x / self.scale + self.zero_point).clamp(0, self.qmax)
        q = q + (q.round() - q).detach()
        return (q - self.zero_point) * self.scale


class _FakeQuantizedLayer(nn.Module):
    """Run a layer on a quantized value ``x``, with its weight rounded to what its quantized weight stands for."""

    def __init__(self, layer: Any, x: QuantizedValue, qmax: int):
        super().__init__()
        self.layer, self.x, self.qmax = layer, x, qmax

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        rounded = weight + (self._rounded() - weight).detach()
        y = functional_call(self.layer, {"weight": rounded}, (x,))
        if (
            isinstance(self.layer, Adder) and self.layer.recenter
        ):  # adds the sum of the weight before rounding, as the program does
            excess = (weight.abs() - rounded.abs()).detach().flatten(1).sum(1)
            y = y + excess.view(-1, *[1] * (y.dim() - 2))
        return y

    @torch.no_grad()
    def _rounded(self) -> Tensor:
        weight, x = self.layer.weight, self.x
        filters = weight.double() if weight.dim() == 4 else weight.double().view(len(weight), *x.shape)
        if isinstance(self.layer, Adder):
            q, clipped = quantize_adder_weight(filters, x, self.qmax)
            real = (q - x.zero_point) * x.scale + (filters - clipped)
        else:
            q, scale = quantize_conv_weight(filters, x)
            real = q * scale.view(-1, 1, 1, 1) / x.scale.expand(x.shape[0]).view(-1, 1, 1)
        return real.to(weight.dtype).view_as(weight)
