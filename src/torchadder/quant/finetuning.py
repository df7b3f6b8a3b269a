"""Fine-tune a network for quantization: training continues with the rounding that its integer program will do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

from torchadder.errors import UserError
from torchadder.optim import AdaptiveLR
from torchadder.quant.calibration import Method, Recorder, image_batches, observe
from torchadder.quant.fake_quantized import FakeQuantized
from torchadder.quant.graph import Network, capture, image_shape, kind_of, sizes
from torchadder.quant.lowering import Lowering
from torchadder.quant.normalization import CORRECTED_BELOW, correct_normalization
from torchadder.quant.program import Program

STATISTICS_BATCHES = 50  # as recipes of other data sets take; more batches change the averages little
# Learning rate and eta with labels, a tenth of the recipes', since the weights are trained already; and without, where
# batch normalisation does not follow what larger ones change.
RATES = {True: (0.01, 0.02), False: (0.001, 0.005)}


class Batches(Protocol):
    """Iterate over batches and know their number, as torch's DataLoader: (images, labels), or images without labels."""

    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...


def finetune(
    model: nn.Module | ExportedProgram,
    batches: Batches,
    calibration: Tensor | Iterable[Any],
    bits: int = 8,
    method: Method = "mse",
    *,
    labels: bool = True,
    epochs: int = 1,
    lr: float | None = None,
    eta: float | None = None,
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
        labels: False learns the answers of ``model`` (Kullback-Leibler divergence) in place of labels, which
            ``batches`` may then lack. Batch normalisation keeps its statistics, corrected as in quantize.
        epochs: passes over ``batches``; nothing but the batches may be random.
        lr: learning rate of SGD with momentum 0.9; it falls to 0 in a cosine. None: 0.01, without labels 0.001.
        eta: of AdaptiveLR for the adder layers. None: 0.02, without labels 0.005; the filters change little.
        epoch_done: called after each epoch with its number, from 1, and its mean loss.

    The range of each activation is measured at the start of each epoch on the fake-quantized network and stays fixed
    during the epoch; the program has the ranges of the last one.

    Raises UserError as quantize does, for epochs or lr out of range, where there is no batch or no parameter to train,
    and where the loss is not finite.
    """
    if epochs < 1:
        raise UserError(f"epochs={epochs} is out of range: expected at least 1")
    lr, eta = (own if given is None else given for given, own in zip((lr, eta), RATES[labels], strict=True))
    if not (math.isfinite(lr) and lr > 0):
        raise UserError(f"lr={lr} is out of range: expected a finite number above 0")
    steps = _number_of(batches)
    images = image_batches(calibration)
    teacher = None if labels else Recorder(capture(model, images[0]), ())
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
        if teacher and epoch == 1 and bits < CORRECTED_BELOW:
            correct_normalization(network, Lowering(network, bits, method, statistics), images)
        recorder = rounded = FakeQuantized(network, Lowering(network, bits, method, statistics))
        rounded.training = labels
        loss_sum = 0.0
        for batch in batches:
            loss = _divergence(rounded, teacher, batch) if teacher else _cross_entropy(rounded, batch)
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
    if labels:
        rounded.estimate_statistics(pixels for pixels, _ in islice(batches, STATISTICS_BATCHES))
    return Lowering(network, bits, method, statistics).program()


def _cross_entropy(rounded: FakeQuantized, batch: Any) -> Tensor:
    pixels, labels = labelled(batch, rounded.network)
    return F.cross_entropy(rounded(pixels).flatten(1), labels)


def _divergence(rounded: FakeQuantized, teacher: Recorder, batch: Any) -> Tensor:
    pixels = fitting(batch[0] if isinstance(batch, (tuple, list)) and batch else batch, rounded.network)
    with torch.no_grad():
        answers = teacher(pixels).flatten(1).log_softmax(1)
    own = rounded(pixels).flatten(1).log_softmax(1)
    return F.kl_div(own, answers, reduction="batchmean", log_target=True)


def _number_of(batches: Batches) -> int:
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


def fitting(images: Any, network: Network) -> Tensor:
    """Return the images of a batch. Raises UserError where ``network`` cannot take them."""
    is_tensor = isinstance(images, Tensor) and images.is_floating_point()
    if not is_tensor or image_shape(images.shape[1:]) != network.shape:
        expected = f"float (N, {', '.join(map(str, network.shape))}), as the network takes them"
        raise UserError(f"batches: expected images {expected}, got {kind_of(images)}")
    return images


def labelled(batch: Any, network: Network) -> tuple[Tensor, Tensor]:
    """Return images and labels of a batch, the labels as int64. Raises UserError where ``network`` cannot take them."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
        raise UserError(f"batches: expected tensors (images, labels), got {', '.join(map(kind_of, parts))}")
    images, labels = fitting(batch[0], network), batch[1]
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise UserError(f"batches: expected labels int64 (N,), got {kind_of(labels)}")
    labels, (classes, *_) = labels.long(), sizes(network.output)
    if not 0 <= labels.min() <= labels.max() < classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise UserError(f"batches: label {wrong} is out of range: the network has classes 0 to {classes - 1}")
    return images, labels
