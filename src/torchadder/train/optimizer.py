"""The optimiser of a recipe, and what stands between the gradients and its step: ALR or ILR, and clipping."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from torchadder.optim import AdaptiveLR, IncreasedLR
from torchadder.train.recipe import Recipe


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over every parameter of ``model``."""
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
    )


def attach_adder_lr(optimizer: Optimizer, recipe: Recipe) -> AdaptiveLR | IncreasedLR | None:
    """The recipe's rate of the adder layers; None where they learn at the rate of all others, or are none."""
    if recipe.op != "adder" or recipe.lr_scheme == "plain":
        return None
    if recipe.lr_scheme == "ilr":
        return IncreasedLR(optimizer, recipe.ilr_factor)
    return AdaptiveLR(optimizer, recipe.eta)


def clip_gradients(model: nn.Module, recipe: Recipe) -> None:
    """Bring the gradients down to the recipe's norm, taken over all of them together; nothing for a norm of 0.

    The adder weights are left out where ALR or ILR rescales their gradients in the step: ALR would undo it, and
    in the common norm they would decide how far all others are clipped.
    """
    if recipe.clip_grad == 0:
        return
    rescaled = recipe.op == "adder" and recipe.lr_scheme != "plain"
    clipped = [p for p in model.parameters() if not (rescaled and getattr(p, "adder", False))]
    nn.utils.clip_grad_norm_(clipped, recipe.clip_grad)
