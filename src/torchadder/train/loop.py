"""The training loop, plain PyTorch from top to bottom: build, restore, train, test, save."""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from torchadder.data import Batches, load_dataset
from torchadder.errors import UserError
from torchadder.models import create_model
from torchadder.optim import AdaptiveLR, IncreasedLR
from torchadder.train.progress import Progress
from torchadder.train.recipe import Recipe
from torchadder.train.run import Outcome, Run

REPORT_EVERY = 20  # steps; the loss leaves the device no more often than this


def train(
    run: Run,
    *,
    data_dir: Path | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Train ``run`` from where it stands to its recipe's last epoch; a finished run returns at once.

    At the end of every epoch the model is tested on the whole test split and the run is saved. On one CPU
    with the same number of threads the numbers do not depend on interruptions: --resume is exact.

    Raises UserError where the data cannot be had, the loss is no longer finite, or the disk is full; whatever
    happens, KeyboardInterrupt included, the last state that was saved stays good.
    """
    recipe, progress = run.recipe, progress or Progress()
    if run.finished:
        return run.outcome()

    # data and model
    dataset = load_dataset(recipe.dataset, data_dir)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    batches = Batches(
        dataset.train, recipe.batch_size, train=True, seed=recipe.seed, device=device, memory_format=layout
    )
    test_batches = Batches(dataset.test, recipe.batch_size, device=device, memory_format=layout)
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

    # optimiser and learning rates
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )
    adder_lr = attach_adder_lr(optimizer, recipe)
    total_steps = recipe.epochs * len(batches)

    # continue where the last state was saved
    run.begin()
    if run.state is not None:
        model.load_state_dict(run.state["model"])
        optimizer.load_state_dict(run.state["optimizer"])
        if adder_lr is not None:
            adder_lr.load_state_dict(run.state["adder_lr"])
        batches.load_state_dict(run.state["batches"])
        set_rng_state(run.state["rng"])
    step = run.epoch * len(batches)
    progress.started(recipe, model, run.epoch, len(batches))

    for epoch in range(run.epoch + 1, recipe.epochs + 1):
        start = time.perf_counter()
        model.train()
        loss_sum = torch.zeros((), device=device)
        correct = torch.zeros((), device=device, dtype=torch.int64)
        for done, (images, labels) in enumerate(batches, start=1):
            rate = cosine_rate(recipe.lr, step, total_steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = model(images)
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()  # adder_lr rescales the gradients of the adder weights here
            optimizer.zero_grad()
            step += 1
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == labels).sum()
            if done % REPORT_EVERY == 0 or done == len(batches):
                mean_loss = loss_sum.item() / done
                if not math.isfinite(mean_loss):
                    raise UserError(diverged(recipe, run, epoch))
                progress.stepped(epoch, done, mean_loss)
        images_seen = len(batches) * recipe.batch_size
        train_seconds = time.perf_counter() - start

        scores = evaluate(model, test_batches)
        row = {
            "epoch": epoch,
            "train_loss": mean_loss,
            "train_accuracy": 100 * correct.item() / images_seen,
            "test_loss": scores.loss,
            "test_accuracy": scores.accuracy,
            "lr": rate,
            "seconds": time.perf_counter() - start,
            "images_per_second": images_seen / train_seconds,
            "peak_rss_mib": peak_rss_mib(),
        }
        state = {
            "optimizer": optimizer.state_dict(),
            "adder_lr": None if adder_lr is None else adder_lr.state_dict(),
            "batches": batches.state_dict(),
            "rng": rng_state(),
            "samples_seen": step * recipe.batch_size,
        }
        run.end_epoch(row, model, state)
        progress.epoch_done(row)
    return run.outcome()


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy, and top-1 accuracy in percent."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> Scores:
    """Scores of ``model``, set to evaluation mode, over all images of ``batches``."""
    model.eval()
    device = batches.labels.device
    loss_sum = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    for images, labels in batches:
        logits = model(images)
        loss_sum += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    count = len(batches.labels)
    return Scores(loss_sum.item() / count, 100 * correct.item() / count)


def attach_adder_lr(optimizer: Optimizer, recipe: Recipe) -> AdaptiveLR | IncreasedLR | None:
    """The recipe's rate of the adder layers; None where they learn at the rate of all others, or are none."""
    if recipe.op != "adder" or recipe.lr_scheme == "plain":
        return None
    if recipe.lr_scheme == "ilr":
        return IncreasedLR(optimizer, recipe.ilr_factor)
    return AdaptiveLR(optimizer, recipe.eta)


def cosine_rate(first: float, step: int, total_steps: int) -> float:
    """The rate of step 0, 1, ..., total_steps - 1: a cosine from ``first`` to 0."""
    return first * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def diverged(recipe: Recipe, run: Run, epoch: int) -> str:
    smaller = "--eta or --lr" if recipe.op == "adder" and recipe.lr_scheme == "alr" else "--lr"
    kept = f"; the checkpoint of epoch {run.epoch} is kept" if run.epoch else ""
    return f"the loss became NaN or infinite in epoch {epoch}{kept}. Start a new run with a smaller {smaller}"


def rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def peak_rss_mib() -> float:
    """The most memory that this process ever had resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
