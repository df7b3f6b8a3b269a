"""Train a model: build, restore, then train, test and save it epoch by epoch, in plain PyTorch from top to bottom."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from torchadder.data import Loader, Split, StreamedSplit, load_dataset, open_batches
from torchadder.errors import UserError
from torchadder.models import Model, create_model

from .distillation import Distiller, build_distiller
from .distributed import ALONE, Processes, alone, no_sync
from .images import check_images
from .memory import keep_freed_memory
from .optimizer import (
    IMAGES,
    attach_adder_lr,
    build_optimizer,
    clip_gradients,
    first_not_finite,
    is_finite,
)
from .progress import Progress
from .recipe import NORM_BATCHES, Recipe
from .run import Outcome, Run, rng_state, set_rng_state

REPORT_EVERY = 20  # steps between two calls of Progress.stepped, since reading the loss waits for a GPU
STEP_FACTOR = 0.1  # multiplies the learning rate at each milestone of schedule="step"
CHECKED_EPOCH = 3  # the first epoch, beside the last, after which training warns of a test at chance


def train(
    run: Run,
    *,
    data_dir: Path | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    workers: int | None = None,
) -> Outcome:
    """Train ``run`` from its last state to its recipe's last epoch; return at once for a finished run.

    Several ``processes`` share the work: each calls this function with the run that ``processes.open`` returned.
    Without ``processes`` it trains on a GPU, or on the CPU where there is none (CUDA_VISIBLE_DEVICES= hides GPUs).
    ``workers``: how many processes decode streamed images for each training process (default: one per processor, at
    most 8).

    At the end of every epoch the model is tested on the whole test split and the run is saved. On one CPU with the
    same number of threads the numbers do not depend on interruptions: a resumed run ends with the same bits.

    Raises UserError where the data is not available, a loss or gradient is not finite, or the disk is full. After any
    error, KeyboardInterrupt included, the last state that was saved is intact.
    """
    progress = progress or Progress()
    if not run.finished:
        with deterministic_algorithms(run.recipe.deterministic), closing(run):
            train_epochs(run, data_dir, progress, processes or alone(), workers)
    return run.outcome()


def train_epochs(
    run: Run, data_dir: Path | None, progress: Progress, processes: Processes, workers: int | None
) -> None:
    """Train the epochs that ``run`` still lacks."""
    recipe, device = run.recipe, processes.device
    processes.check(recipe)
    keep_freed_memory()

    # data and model
    with processes.first_on_machine_goes_first():
        dataset = load_dataset(recipe.dataset, data_dir, partial=recipe.partial, on_error=recipe.on_error)
    if recipe.augment and dataset.augmentation is None:
        raise UserError(f"augment=True, but {recipe.dataset} has no augmentation: leave it out, or pass augment=False")
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    batches = open_batches(
        dataset.train,
        recipe.batch_size,
        train=True,
        augment=dataset.augmentation if recipe.augment else None,
        seed=recipe.seed,
        device=device,
        memory_format=layout,
        share=processes.share,
        workers=workers,
    )
    test_batches = open_batches(
        dataset.test,
        recipe.batch_size,
        device=device,
        memory_format=layout,
        share=processes.share,
        workers=workers,
    )
    torch.manual_seed(recipe.seed)
    model = create_model(
        recipe.model,
        op=recipe.op,
        num_classes=dataset.num_classes,
        in_chans=dataset.in_chans,
        grad=recipe.gradient_rule,
        recenter=recipe.recenter,
    )
    check_images(model, dataset, recipe.model)
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]

    # optimiser, learning rate of the adder layers, teacher, running average of the weights
    optimizer = build_optimizer(model, recipe)
    adder_lr = attach_adder_lr(optimizer, recipe)
    distiller = build_distiller(model, recipe)
    if recipe.sync_bn:
        processes.synchronise_norms(model, distiller)
    average = build_average(model, recipe)
    tested: Model = model if average is None else average.module  # type: ignore[assignment]  # also the one that is saved

    # continue from the last saved state
    step = run.epoch * len(batches)
    if run.state is not None:
        tested.load_state_dict(run.state["model"])
        if average is not None:
            model.load_state_dict(run.state["trained"])
            average.n_averaged.fill_(step)
        optimizer.load_state_dict(run.state["optimizer"])
        if adder_lr is not None:
            adder_lr.load_state_dict(run.state["adder_lr"])
        if distiller is not None:
            distiller.load_training_state(run.state["distiller"])
        batches.load_state_dict(run.state["batches"])
        set_rng_state(run.state["rng"])
    run.begin(device)
    parallel = processes.parallel(model)
    progress.started(recipe, model, run.epoch, len(batches))

    for epoch in range(run.epoch + 1, recipe.epochs + 1):
        start = time.perf_counter()
        model.train()
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), device=device, dtype=torch.int64)
        for done, (images, labels) in enumerate(batches, start=1):
            rate = rate_at(recipe, step, len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, right = processes.sum(*forward_backward(parallel, images, labels, recipe, distiller))
            loss = loss / processes.world  # all shares have the same size
            if not is_finite(loss, model):
                place = first_not_finite(model, lambda: forward_backward(model, images, labels, recipe, distiller))  # noqa: B023
                raise UserError(describe_divergence(run, epoch, processes.gather(place)))
            clip_gradients(model, recipe)
            optimizer.step()  # adder_lr rescales the gradients of the adder weights here
            optimizer.zero_grad()
            if distiller is not None:
                processes.average_gradients(distiller)
                distiller.step(rate)
            if average is not None:
                average.update_parameters(model)
            step += 1
            loss_sum += loss
            correct += right
            if done % REPORT_EVERY == 0 or done == len(batches):
                mean_loss = loss_sum.item() / done
                progress.stepped(epoch, done, mean_loss)
        images_seen = batches.count
        train_seconds = time.perf_counter() - start

        if average is not None or recipe.norm_batches:
            recompute_norm_statistics(tested, batches, recipe.norm_batches or NORM_BATCHES)
        processes.average_buffers(model, tested, distiller)
        scores = evaluate(tested, test_batches, processes)
        row = {
            "epoch": epoch,
            "train_loss": mean_loss,
            "train_accuracy": 100 * correct.item() / images_seen,
            "test_loss": scores.loss,
            "test_accuracy": scores.accuracy,
            "test_top5_accuracy": scores.top5,
            "lr": rate,
            "seconds": time.perf_counter() - start,
            "images_per_second": images_seen / train_seconds,
            "peak_rss_mib": max(processes.gather(peak_rss_mib())),
        }
        state = {
            "trained": None if average is None else model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "adder_lr": None if adder_lr is None else adder_lr.state_dict(),
            "distiller": None if distiller is None else distiller.training_state(),
            "batches": batches.state_dict(),
            "rng": rng_state(),
            "samples_seen": step * recipe.batch_size,
        }
        run.end_epoch(row, tested, state)
        progress.epoch_done(row)
        if epoch in (CHECKED_EPOCH, recipe.epochs) and has_learned_in_vain(row, class_sizes(dataset.test)):
            progress.warned(describe_chance(row, recipe))


def rate_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of ``step`` (0, 1, ... over all epochs of ``recipe``).

    The rate rises linearly during the warm-up, whose last step has ``recipe.lr``. The schedule covers the steps after
    it. Cosine and polynomial end just above 0: they would reach 0 one step after the last.
    """
    warmup = recipe.warmup_epochs * steps_per_epoch
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    done, total = step - warmup, recipe.epochs * steps_per_epoch - warmup
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * done / total))
    if recipe.schedule == "polynomial":
        return recipe.lr * (1 - done / total) ** recipe.power
    passed = sum(step >= epoch * steps_per_epoch for epoch in recipe.milestone_epochs)
    return recipe.lr * STEP_FACTOR**passed


def forward_backward(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, distiller: Distiller | None = None
) -> tuple[Tensor, Tensor]:
    """Add the gradients of a batch's mean loss to those of ``model``; return the loss and the number of right labels.

    The batch runs in ``recipe.accumulate`` parts. Each part is normalised by itself, like a smaller batch, and is
    weighted by its share of the images, so that the gradient is the mean over the batch. The loss includes that of
    ``distiller``.
    """
    batch_loss = torch.zeros((), device=images.device)
    right = torch.zeros((), device=images.device, dtype=torch.int64)
    parts = zip(images.tensor_split(recipe.accumulate), labels.tensor_split(recipe.accumulate), strict=True)
    for number, (part, part_labels) in enumerate(parts, start=1):
        with no_sync(model, number < recipe.accumulate):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits, added = (model(part), 0) if distiller is None else distiller(model, part, part_labels)
                loss = F.cross_entropy(logits, part_labels, label_smoothing=recipe.label_smoothing) + added
            loss = loss * (len(part) / len(images))
            loss.backward()
        batch_loss += loss.detach()
        right += (logits.detach().argmax(1) == part_labels).sum()
    return batch_loss, right


def build_average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """Build the running average (EMA) of the weights of ``model``; None where ``recipe.ema`` is 0.

    The average begins as a copy of the weights after the first step. It is tested and saved in their place.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema)) if recipe.ema else None


def recompute_norm_statistics(model: nn.Module, batches: Loader, count: int) -> None:
    """Recompute the batch-normalisation statistics of ``model`` from ``count`` batches, at most those of an epoch.

    The mean of an adder layer's outputs is hundreds of times their standard deviation and changes with the weights.
    Running averages, and those of averaged weights (recipe.ema), do not fit the weights until these change slowly.
    Training does not use them: the weights stay the same bits, and ``batches`` are left as they were.
    """
    before = batches.state_dict()
    update_bn((images for images, _ in islice(batches, count)), model)
    batches.load_state_dict(before)


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[None]:
    """Allow only deterministic algorithms within the block if ``on``; torch raises RuntimeError where it has none.

    This matters only on a GPU, which becomes slower; all CPU operators of this library are deterministic. If not
    ``on``, cuDNN and this library's GPU kernels time several algorithms for each shape and take the fastest one.
    """
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its start
        torch.use_deterministic_algorithms(True)
    cudnn.benchmark = not on
    try:
        yield
    finally:
        if on:  # not called otherwise, because it imports torch's compiler, which takes seconds
            torch.use_deterministic_algorithms(before[0])
        cudnn.benchmark = before[1]


@dataclass(frozen=True)
class Scores:
    """Hold mean cross-entropy, top-1 and top-5 accuracy in percent; with at most five classes top-5 is 100."""

    loss: float
    accuracy: float
    top5: float


@torch.no_grad()
def evaluate(model: Callable[[Tensor], Tensor], batches: Loader, processes: Processes = ALONE) -> Scores:
    """Return the scores over all images; ``batches`` holds this process's share of them.

    ``model`` maps images to logits; a module is set to evaluation mode.
    """
    if isinstance(model, nn.Module):
        model.eval()
    device = batches.device
    loss_sum = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros(2, device=device, dtype=torch.int64)  # top-1, top-5
    for images, labels in batches:
        logits = model(images)
        loss_sum += F.cross_entropy(logits, labels, reduction="sum")
        likeliest = logits.topk(min(5, logits.shape[1])).indices
        correct += torch.stack([logits.argmax(1) == labels, (likeliest == labels[:, None]).any(1)]).sum(1)
    loss, *right = processes.sum(loss_sum, *correct)
    top1, top5 = (100 * count.item() / batches.count for count in right)
    return Scores(loss.item() / batches.count, top1, top5)


def class_sizes(split: Split | StreamedSplit) -> Tensor:
    """Return the number of images of each class of ``split``, int64 (K,)."""
    return torch.as_tensor((split if isinstance(split, Split) else split.source).labels).bincount()


def largest_share(sizes: Tensor) -> float:
    """Return the share of the largest class, of ``sizes`` (K,): the accuracy of one answer to every image."""
    return sizes.max().item() / sizes.sum().item()


def is_at_chance(accuracy: float, sizes: Tensor) -> bool:
    """Say whether an ``accuracy`` in percent is no better than one answer to all images of classes of these ``sizes``.

    Two standard errors above the accuracy of that answer count as no better. False for a single class.
    """
    chance = largest_share(sizes)
    return chance < 1 and accuracy / 100 <= chance + 2 * math.sqrt(chance * (1 - chance) / int(sizes.sum()))


def has_learned_in_vain(row: dict[str, Any], sizes: Tensor) -> bool:
    """Say whether the test on classes of these ``sizes`` is at chance, although the training images are learned.

    The training accuracy is then at least a quarter of the way from chance to 100%.
    """
    chance = largest_share(sizes)
    learned = row["train_accuracy"] / 100 >= chance + (1 - chance) / 4
    return learned and is_at_chance(row["test_accuracy"], sizes)


def describe_chance(row: dict[str, Any], recipe: Recipe) -> str:
    """Return one line about an epoch that has_learned_in_vain."""
    if recipe.norm_batches or recipe.ema:
        todo = "look for a difference between training and test images, or start a new run with a smaller lr"
    else:
        todo = (
            "the running averages of batch normalisation may lag behind the weights: "
            f"start a new run with norm_batches={NORM_BATCHES}, or train longer"
        )
    return (
        f"after epoch {row['epoch']} the test accuracy, {row['test_accuracy']:.1f}%, is no better than one answer to "
        f"every image, although that on training images is {row['train_accuracy']:.1f}%; {todo}"
    )


def describe_divergence(run: Run, epoch: int, places: list[str | None]) -> str:
    """Return one line about numbers that are not finite; ``places``: where each process found its first one."""
    recipe = run.recipe
    place = min(filter(None, places), key=lambda place: place != IMAGES, default=None)
    first = f", first in {place}" if place else ""
    kept = f"; the checkpoint of epoch {run.epoch} is kept" if run.epoch else ""
    smaller = "eta or lr" if recipe.op == "adder" and recipe.lr_scheme == "alr" else "lr"
    todo = "check the data" if place == IMAGES else f"start a new run with a smaller {smaller}"
    return f"NaN or infinite numbers in epoch {epoch}{first}{kept}: {todo}"


def peak_rss_mib() -> float:
    """Return the peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
