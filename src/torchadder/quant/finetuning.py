"""Fine-tune a network for quantization: training continues with the rounding that its integer program will do.

In the forward pass every quantized value and every weight is rounded ("fake quantization"). In the backward pass
rounding is the identity (straight-through estimator; Bengio et al., arXiv 1308.3432), and the gradient is 0 where a
value lies beyond its range.

Filters of an adder layer are not clamped to the range of x. Clamping would change nothing, since
|x - w| = |x - clip(w)| + |w - clip(w)|, and without it they learn by the layer's own gradient rule. Binary layers need
no rounding, because they take the signs of their weights and inputs themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from torchadder.errors import UserError
from torchadder.optim import AdaptiveLR
from torchadder.quant.builder import KINDS
from torchadder.quant.calibration import Method, Recorder, image_batches, observe
from torchadder.quant.graph import BATCH_NORM, Network, capture, image_shape, kind_of, operator_of, sizes
from torchadder.quant.lowering import Lowering
from torchadder.quant.program import Program
from torchadder.quant.steps import Kind
from torchadder.quant.values import QuantizedValue, quantize_adder_weight, quantize_conv_weight

MOMENTUM = 0.1  # of running statistics, where a layer averages over all batches
STATISTICS_BATCHES = 50  # as recipes of other data sets take; more batches change the averages little
LEARNING_RATE = 0.01  # a tenth of the recipes' rate: the weights are trained already


class LabelledBatches(Protocol):
    """Iterate over (images, labels) and know the number of batches: a torch DataLoader, or torchadder.data.Loader."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def __len__(self) -> int: ...


def finetune(
    model: nn.Module | ExportedProgram,
    batches: LabelledBatches,
    calibration: Tensor | Iterable[Any],
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
        model, calibration, bits, method: as in quantize. Dropout is not active.
        batches: training images float32 (N, C, H, W) and labels int64 (N,), in a new order each epoch, augmented as
            in the training before: batch normalisation updates its statistics. When the weights are final, it
            recomputes them from the first STATISTICS_BATCHES batches.
        epochs: passes over ``batches``; nothing but the batches may be random.
        lr: learning rate of SGD with momentum 0.9 on the cross-entropy; it falls to 0 in a cosine.
        eta: of AdaptiveLR for the adder layers; a tenth of the default in training, because the filters change little.
        epoch_done: called after each epoch with its number, from 1, and its mean loss.

    The range of each activation is measured at the start of each epoch on the fake-quantized network and stays fixed
    during the epoch; the program has the ranges of the last one.

    Raises UserError as quantize does, for epochs or lr out of range, where there is no batch or no parameter to train,
    and where the loss is not finite.
    """
    if epochs < 1:
        raise UserError(f"epochs={epochs} is out of range: expected at least 1")
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"lr={lr} is out of range: expected a finite number above 0")
    steps = _number_of(batches)
    images = image_batches(calibration)
    network = capture(model, images[0])
    network.freeze_unreached(images[0])
    if not (torch.is_grad_enabled() and any(parameter.requires_grad for parameter in network.parameters())):
        raise UserError("no parameter has a gradient: call model.requires_grad_(), and leave torch.no_grad()")
    network.warn_of_softmax()
    draft = Lowering(network, bits, method)
    draft.program()
    network.check_against_original(images[0])
    recorder = Recorder(network, draft.ranged)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    if any(getattr(parameter, "adder", False) for parameter in network.parameters()):
        AdaptiveLR(optimizer, eta)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    for epoch in range(1, epochs + 1):
        statistics = observe(recorder, images)
        recorder = rounded = FakeQuantized(network, Lowering(network, bits, method, statistics))
        rounded.training = True
        loss_sum = 0.0
        for pixels, labels in (labelled(batch, network) for batch in batches):
            loss = F.cross_entropy(rounded(pixels).flatten(1), labels)
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
            epoch_done(epoch, loss_sum / steps)
        rounded.training = False
    rounded.estimate_statistics(pixels for pixels, _ in islice(batches, STATISTICS_BATCHES))
    return Lowering(network, bits, method, statistics).program()


def _number_of(batches: LabelledBatches) -> int:
    """Return the number of batches. Raises UserError where there is none, or no number."""
    try:
        number = len(batches)
    except TypeError as error:
        kind = type(batches).__name__
        reason = f"batches is a {kind} without a length: expected a list, or a DataLoader of a Dataset"
        raise UserError(reason) from error
    if not number:
        raise UserError("batches is empty: expected at least one of (images, labels), maybe without drop_last")
    return number


def labelled(batch: Any, network: Network) -> tuple[Tensor, Tensor]:
    """Return images and labels of a batch, the labels as int64. Raises UserError where ``network`` cannot take them."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
        raise UserError(f"batches: expected tensors (images, labels), got {', '.join(map(kind_of, parts))}")
    images, labels = batch
    if not images.is_floating_point() or image_shape(images.shape[1:]) != network.shape:
        expected = f"float (N, {', '.join(map(str, network.shape))}), as the network takes them"
        raise UserError(f"batches: expected images {expected}, got {kind_of(images)}")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise UserError(f"batches: expected labels int64 (N,), got {kind_of(labels)}")
    labels, (classes, *_) = labels.long(), sizes(network.output)
    if not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"batches: label {wrong} is out of range: the network has classes 0 to {classes - 1}")
    return images, labels


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
