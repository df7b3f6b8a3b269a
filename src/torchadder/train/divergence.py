"""Numbers that are not finite: noticed before they reach the weights, and traced to where they began."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

IMAGES = "the images"  # the place before the first layer


def is_finite(loss: Tensor, model: nn.Module) -> bool:
    """Whether ``loss`` and the norm of all gradients of ``model`` are finite. One number leaves the device."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(torch.isfinite(loss + nn.utils.get_total_norm(gradients)))


def first_not_finite(model: nn.Module, step: Callable[[], object]) -> str | None:
    """Where the first number appears that is not finite while ``step`` runs ``model`` forward and backward.

    In words, such as "the output of conv2 (AdderConv2d)"; in order of execution, the innermost modules only. None
    where all are finite. The gradients of ``model`` are cleared first, and are those of ``step`` afterwards.
    """
    found: list[str] = []

    def look(tensor: Any, place: str) -> None:
        if not found and isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
            found.append(place)

    def watch_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            place = f"the output of {name} ({type(module).__name__})"
            look(output, place)
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: look(gradient, f"the gradient at {place}"))

        return hook

    def watch_gradient(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: look(gradient, f"the gradient of {name}")

    hooks: list[Any] = [model.register_forward_pre_hook(lambda module, inputs: look(inputs[0], IMAGES))]
    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            hooks.append(module.register_forward_hook(watch_output(name)))
    hooks += [p.register_hook(watch_gradient(name)) for name, p in model.named_parameters() if p.requires_grad]
    model.zero_grad()
    try:
        step()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
