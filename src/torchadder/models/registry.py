"""The models by name: one decorator to add a network, one function to build any of them with any operator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from torch import nn

from torchadder.errors import UserError
from torchadder.nn import AdderConv2d, AdderLinear, BinaryConv2d, BinaryLinear, GradientRule

OPS = ("adder", "conv", "binary")


class Model(nn.Module):
    """A network of the registry. ``create_model(**model.config)`` builds the same one again, weights aside.

    ``config``: name, op, num_classes, in_chans, grad, recenter; plain values, which a checkpoint can carry as JSON.
    ``input_size``: (C, H, W) of the images that the paper feeds it.
    """

    config: dict[str, Any]
    input_size: tuple[int, int, int]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write model.safetensors and config.json into ``directory``; see models.hub.save_pretrained."""
        from . import hub

        hub.save_pretrained(self, directory)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], revision: str | None = None) -> Model:
        """The model in a directory, or of the name owner/name on the hub; see models.hub.from_pretrained.

        Raises UserError also where it is no model of this class.
        """
        from . import hub

        model = hub.from_pretrained(name, revision)
        if not isinstance(model, cls):
            raise UserError(f"{name} holds {model.config['name']}, a {type(model).__name__}, not a {cls.__name__}")
        return model

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to the Hugging Face hub, return its URL; the options are models.hub.push_to_hub's."""
        from . import hub

        return hub.push_to_hub(self, repo_id, **options)


class Layers(NamedTuple):
    """What a network of one operator is made of.

    ``conv2d`` and ``linear`` are called as nn.Conv2d and nn.Linear are, ``activation`` without arguments. The
    activation of a binary network is the identity: the sign that a binary layer takes of its input is the
    nonlinearity, and after a ReLU every sign would be +1. ``first`` and ``last`` make the outermost layers of the
    LeNets: of the operator as all others, but ordinary ones in a binary network, as XNOR-Net's authors have it.
    """

    conv2d: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    activation: Callable[[], nn.Module]
    first: Callable[..., nn.Module]
    last: Callable[..., nn.Module]


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


def layers_of(op: str, grad: GradientRule | None = None, recenter: bool = False) -> Layers:
    """The layers of ``op``; ``grad`` (None: the paper's rule) and ``recenter`` are those of its adder layers."""
    relu = partial(nn.ReLU, inplace=True)
    if op == "adder":
        options: dict[str, Any] = {"grad": grad or GradientRule(), "recenter": recenter}
        conv2d, linear = partial(AdderConv2d, **options), partial(AdderLinear, **options)
        return Layers(conv2d, linear, relu, first=conv2d, last=linear)
    if op not in OPS:
        raise UserError(f"unknown op {op!r}; known: {', '.join(OPS)}")
    if grad is not None:
        raise UserError(f"op {op!r} has no gradient rule, but grad={grad} was given; leave it out")
    if recenter:
        raise UserError(f"op {op!r} has no adder layers to recenter, but recenter=True was given; leave it out")
    if op == "binary":
        return Layers(BinaryConv2d, BinaryLinear, nn.Identity, first=nn.Conv2d, last=nn.Linear)
    return Layers(nn.Conv2d, nn.Linear, relu, first=nn.Conv2d, last=nn.Linear)


def list_models() -> list[str]:
    """The names that create_model knows, sorted."""
    return sorted(_MODELS)


def create_model(
    name: str,
    op: str = "adder",
    num_classes: int | None = None,
    in_chans: int | None = None,
    grad: GradientRule | Mapping[str, str] | None = None,
    recenter: bool = False,
) -> Model:
    """Build a network of the paper, freshly initialised.

    Args:
        name: one of ``list_models()``.
        op: "adder" (L1 distance, no multiplication), "conv" (the CNN twin) or "binary" (the BNN twin); weights
            have the same names and shapes in all three (of LeNet++ but the last normalisation).
        num_classes, in_chans: default to the paper's task, e.g. 10 and 1 for lenet5bn.
        grad: gradient rule of the adder layers, a GradientRule or its fields as a mapping.
        recenter: every adder layer adds sum |W| to its outputs, which 16-bit training needs (AdderConv2d).

    Returns a float32 Model in training mode, each layer initialised as its class does it: (N, in_chans, H, W) ->
    logits (N, num_classes).

    Raises UserError (not ValueError: the command line prints the same line) for an unknown name or op, a
    count below 1, a gradient rule that does not exist, and for a rule or recenter=True without adder layers.
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
    model = builder.build(layers_of(op, rule, recenter), classes, channels)
    model.config = {
        "name": name,
        "op": op,
        "num_classes": classes,
        "in_chans": channels,
        "grad": None if rule is None else rule._asdict(),
        "recenter": recenter,
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
