"""Build the optimiser of a recipe, and check and clip the gradients before its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torchadder.optim import AdaptiveLR, IncreasedLR

from .recipe import Recipe

IMAGES = "the images"  # the place that first_not_finite returns for the input of the model


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Build the recipe's optimiser over every parameter of ``model``."""
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
    """Attach the recipe's learning rate of adder layers; None without adder layers or with lr_scheme="plain"."""
    if recipe.op != "adder" or recipe.lr_scheme == "plain":
        return None
    if recipe.lr_scheme == "ilr":
        return IncreasedLR(optimizer, recipe.ilr_factor)
    return AdaptiveLR(optimizer, recipe.eta)


def clip_gradients(model: nn.Module, recipe: Recipe) -> None:
    """Scale all gradients by one factor so that their common norm is at most ``recipe.clip_grad``; 0 means no limit.

    Adder weights whose gradients ALR or ILR rescales in the step are left out: ALR would undo the clipping, and their
    large gradients would decide how far all others are clipped.
    """
    if recipe.clip_grad == 0:
        return
    rescaled = recipe.op == "adder" and recipe.lr_scheme != "plain"
    clipped = [p for p in model.parameters() if not (rescaled and getattr(p, "adder", False))]
    nn.utils.clip_grad_norm_(clipped, recipe.clip_grad)


def is_finite(loss: Tensor, model: nn.Module) -> bool:
    """Say whether ``loss`` and the norm of all gradients of ``model`` are finite, by one copy from the device."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(torch.isfinite(loss + nn.utils.get_total_norm(gradients)))


def first_not_finite(model: nn.Module, step: Callable[[], object]) -> str | None:
    """Find the first NaN or infinity while ``step`` runs ``model`` forward and backward.

    Returns its place in words, such as "the output of conv2 (AdderConv2d)"; None where all numbers are finite. The
    first is that in order of execution; outputs are checked for modules without children. ``model`` keeps the gradients
    of ``step``.
    """
    found: list[str] = []

    def check(tensor: Any, place: str) -> None:
        if not found and isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
            found.append(place)

    def output_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            place = f"the output of {name} ({type(module).__name__})"
            check(output, place)
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: check(gradient, f"the gradient at {place}"))

        return hook

    def gradient_hook(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: check(gradient, f"the gradient of {name}")

    hooks: list[Any] = [model.register_forward_pre_hook(lambda module, inputs: check(inputs[0], IMAGES))]
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            hooks.append(module.register_forward_hook(output_hook(name)))
    hooks += [p.register_hook(gradient_hook(name)) for name, p in model.named_parameters() if p.requires_grad]
    model.zero_grad()
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
