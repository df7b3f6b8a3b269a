"""The training loop, plain PyTorch from top to bottom: build, restore, train, test, save."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchadder.data import Loader, load_dataset, open_batches
from torchadder.errors import UserError
from torchadder.models import Model, create_model
from torchadder.train.averaging import average_of, calibrate
from torchadder.train.determinism import deterministic_algorithms, rng_state, set_rng_state
from torchadder.train.distillation import Distiller, distiller_of
from torchadder.train.distributed import ALONE, Processes, alone, no_sync
from torchadder.train.divergence import IMAGES, first_not_finite, is_finite
from torchadder.train.optimizer import attach_adder_lr, build_optimizer, clip_gradients
from torchadder.train.progress import Progress
from torchadder.train.recipe import Recipe
from torchadder.train.run import Outcome, Run
from torchadder.train.schedule import rate_at

REPORT_EVERY = 20  # steps


def train(
    run: Run,
    *,
    data_dir: Path | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    workers: int | None = None,
) -> Outcome:
    """Train ``run`` from where it stands to its recipe's last epoch; a finished run returns at once.

    Each of ``processes`` calls it with its own of ``processes.open``; they share the work on their devices. Without
    them it trains on a GPU, or on the CPU where there is none (CUDA_VISIBLE_DEVICES= hides them).
    ``workers``: processes of each that decode images which stream (default: one a processor, 8 at most).

    At the end of every epoch the model is tested on the whole test split and the run is saved. On one CPU
    with the same number of threads the numbers do not depend on interruptions: --resume is exact.

    Raises UserError where the data cannot be had, a loss or gradient is not finite, or the disk is full; whatever
    happens, KeyboardInterrupt included, the last state that was saved stays good.
    """
    progress = progress or Progress()
    if not run.finished:
        with deterministic_algorithms(run.recipe.deterministic):
            train_epochs(run, data_dir, progress, processes or alone(), workers)
    return run.outcome()


def train_epochs(
    run: Run, data_dir: Path | None, progress: Progress, processes: Processes, workers: int | None
) -> None:
    """The epochs that ``run`` still lacks."""
    recipe, device = run.recipe, processes.device
    processes.check(recipe)

    # data and model
    with processes.one_a_machine_ahead():
        dataset = load_dataset(recipe.dataset, data_dir, partial=recipe.partial, on_error=recipe.on_error)
    if recipe.augment and dataset.augmentation is None:
        raise UserError(f"--augment: {recipe.dataset} has no augmentation; leave it out, or say --no-augment")
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
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]

    # optimiser, rate of the adder layers, teacher, average of the weights
    optimizer = build_optimizer(model, recipe)
    adder_lr = attach_adder_lr(optimizer, recipe)
    distiller = distiller_of(model, recipe)
    if recipe.sync_bn:
        processes.synchronise_norms(model, distiller)
    average = average_of(model, recipe)
    tested: Model = model if average is None else average.module  # type: ignore[assignment]  # what is saved as well

    # continue where the last state was saved
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
            loss = loss / processes.world  # their shares are of one size
            if not is_finite(loss, model):
                place = first_not_finite(model, lambda: forward_backward(model, images, labels, recipe, distiller))  # noqa: B023
                raise UserError(diverged(run, epoch, processes.gather(place)))
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

        if average is not None:
            calibrate(tested, batches)
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


def forward_backward(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, distiller: Distiller | None = None
) -> tuple[Tensor, Tensor]:
    """Add the gradients of a batch's mean loss to ``model``; that loss, and how many labels were guessed right.

    The batch goes through in the recipe's number of parts. They normalise apart, as smaller batches would, and
    each counts by its share of the images, so that the gradient is the mean over the batch. What a distiller asks
    of ``model`` is a part of the loss.
    """
    batch_loss = torch.zeros((), device=images.device)
    right = torch.zeros((), device=images.device, dtype=torch.int64)
    parts = zip(images.tensor_split(recipe.accumulate), labels.tensor_split(recipe.accumulate), strict=True)
    for number, (part, part_labels) in enumerate(parts, start=1):
        with no_sync(model, number < recipe.accumulate):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits, taught = (model(part), 0) if distiller is None else distiller(model, part, part_labels)
                loss = F.cross_entropy(logits, part_labels, label_smoothing=recipe.label_smoothing) + taught
            loss = loss * (len(part) / len(images))
            loss.backward()
        batch_loss += loss.detach()
        right += (logits.detach().argmax(1) == part_labels).sum()
    return batch_loss, right


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy; top-1 accuracy, and that of the five likeliest classes (or of all, if fewer), in percent."""

    loss: float
    accuracy: float
    top5: float


@torch.no_grad()
def evaluate(model: Callable[[Tensor], Tensor], batches: Loader, processes: Processes = ALONE) -> Scores:
    """Scores over all images of ``batches``, the shares of all processes.

    ``model`` gives the logits of images; a module is set to evaluation mode.
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


def diverged(run: Run, epoch: int, places: list[str | None]) -> str:
    """What to say of numbers that are not finite; ``places``: where each process found the first of them."""
    recipe = run.recipe
    place = min(filter(None, places), key=lambda place: place != IMAGES, default=None)
    first = f", first in {place}" if place else ""
    kept = f"; the checkpoint of epoch {run.epoch} is kept" if run.epoch else ""
    smaller = "--eta or --lr" if recipe.op == "adder" and recipe.lr_scheme == "alr" else "--lr"
    todo = "Look at the data" if place == IMAGES else f"Start a new run with a smaller {smaller}"
    return f"NaN or infinite numbers in epoch {epoch}{first}{kept}. {todo}"


def peak_rss_mib() -> float:
    """The most memory that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
