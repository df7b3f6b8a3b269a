"""The models by name: one decorator to add a network, one function to build any of them with any operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from torch import nn

from ..errors import UserError
from ..nn import AdderConv2d, AdderLinear, GradientRule

OPS = ("adder", "conv")
PLANNED_OPS = ("binary",)


class Model(nn.Module):
    """A network of the registry. ``create_model(**model.config)`` builds the same one again, weights aside.

    ``config``: name, op, num_classes, in_chans, grad; plain values, which a checkpoint can carry as JSON.
    ``input_size``: (C, H, W) of the images that the paper feeds it.
    """

    config: dict[str, Any]
    input_size: tuple[int, int, int]


class Layers(NamedTuple):
    """The two layer classes of an operator, called as nn.Conv2d and nn.Linear are."""

    conv2d: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]


class Builder(NamedTuple):
    """A registered network: how to build it, and the task that it has in the paper."""

    build: Callable[[Layers, int, int], Model]
    num_classes: int
    in_chans: int
    size: int


_MODELS: dict[str, Builder] = {}

BuildFunction = TypeVar("BuildFunction", bound=Callable[[Layers, int, int], Model])


def register(name: str, *, num_classes: int, in_chans: int, size: int) -> Callable[[BuildFunction], BuildFunction]:
    """Register ``build(layers, num_classes, in_chans)`` under ``name``; the paper's task is its default."""

    def decorate(build: BuildFunction) -> BuildFunction:
        if name in _MODELS:
            raise ValueError(f"model {name!r} is registered twice")
        _MODELS[name] = Builder(build, num_classes, in_chans, size)
        return build

    return decorate


def layers_of(op: str, grad: GradientRule | None = None) -> Layers:
    """The layer classes of ``op``; ``grad`` is the gradient rule of the adder layers (None: the paper's)."""
    if op == "adder":
        rule = grad or GradientRule()
        return Layers(partial(AdderConv2d, grad=rule), partial(AdderLinear, grad=rule))
    if op in PLANNED_OPS:
        raise UserError(f"op {op!r} comes with a later release; this one has {', '.join(OPS)}")
    if op != "conv":
        raise UserError(f"unknown op {op!r}; known: {', '.join(OPS)}")
    if grad is not None:
        raise UserError(f"op 'conv' has no gradient rule, but grad={grad} was given; leave it out")
    return Layers(nn.Conv2d, nn.Linear)


def list_models() -> list[str]:
    """The names that create_model knows, sorted."""
    return sorted(_MODELS)


def create_model(
    name: str,
    op: str = "adder",
    num_classes: int | None = None,
    in_chans: int | None = None,
    grad: GradientRule | Mapping[str, str] | None = None,
) -> Model:
    """Build a network of the paper, freshly initialised.

    Args:
        name: one of ``list_models()``.
        op: "adder" (L1 distance, no multiplication) or "conv" (the CNN twin, same shapes and names).
        num_classes, in_chans: default to the paper's task, e.g. 10 and 1 for lenet5bn.
        grad: gradient rule of the adder layers, a GradientRule or its fields as a mapping.

    Returns a float32 Model in training mode: (N, in_chans, H, W) -> logits (N, num_classes).

    Raises UserError (not ValueError: the command line prints the same line) for an unknown name or op, a
    count below 1, a gradient rule that does not exist, or any for op "conv".
    """
    if name not in _MODELS:
        raise UserError(f"unknown model {name!r}; known: {', '.join(list_models())}")
    builder = _MODELS[name]
    classes = builder.num_classes if num_classes is None else num_classes
    channels = builder.in_chans if in_chans is None else in_chans
    for what, count in (("num_classes", classes), ("in_chans", channels)):
        if count < 1:
            raise UserError(f"{what} must be at least 1, got {count}")
    rule = _rule_of(op, grad)
    model = builder.build(layers_of(op, rule), classes, channels)
    model.config = {
        "name": name,
        "op": op,
        "num_classes": classes,
        "in_chans": channels,
        "grad": None if rule is None else rule._asdict(),
    }
    model.input_size = (channels, builder.size, builder.size)
    return model


def _rule_of(op: str, grad: GradientRule | Mapping[str, str] | None) -> GradientRule | None:
    if grad is None:
        return GradientRule() if op == "adder" else None
    try:
        rule = GradientRule(**grad) if isinstance(grad, Mapping) else grad  # type: ignore[arg-type]
        rule.check()
    except (TypeError, ValueError) as error:
        raise UserError(f"gradient rule {grad!r}: {error}") from error
    return rule
