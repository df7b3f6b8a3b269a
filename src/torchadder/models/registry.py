"""Register networks by name, and build any of them with any operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import nn

from torchadder.errors import UserError
from torchadder.functional.adder import check_rule
from torchadder.nn import AdderConv2d, AdderLinear, BinaryConv2d, BinaryLinear, GradientRule

OPS = ("adder", "conv", "binary")


class Model(nn.Module):
    """Define the base class of the networks; ``create_model(**model.config)`` builds the same one, with new weights.

    ``config``: the arguments of create_model, as plain values, which a checkpoint can hold as JSON.
    ``input_size``: (C, H, W) of the paper's images for this network.
    """

    config: dict[str, Any]
    input_size: tuple[int, int, int]

    # Methods that hub.py adds: they need create_model, and with it this class.
    save_pretrained: ClassVar[Callable[..., None]]
    push_to_hub: ClassVar[Callable[..., str]]
    from_pretrained: ClassVar[Callable[..., Model]]
    from_package: ClassVar[Callable[[str], Model]]


class Layers(NamedTuple):
    """Hold the layer classes of a network with one operator.

    ``conv2d`` and ``linear`` take the arguments of nn.Conv2d and nn.Linear, ``activation`` takes none. The
    activation of a binary network is the identity: a binary layer takes the sign of its input, which is the
    nonlinearity, and after a ReLU every sign would be +1. ``first`` and ``last`` build the first and the last
    layer of a LeNet: with the operator of the network, but ordinary layers in a binary network, as in XNOR-Net
    (Rastegari et al., ECCV 2016, arXiv 1603.05279).
    """

    conv2d: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    activation: Callable[[], nn.Module]
    first: Callable[..., nn.Module]
    last: Callable[..., nn.Module]


class Builder(NamedTuple):
    """Hold the function that builds a registered network, and its task in the paper (images of this height, width)."""

    build: Callable[[Layers, int, int], Model]
    num_classes: int
    in_chans: int
    size: tuple[int, int]


_MODELS: dict[str, Builder] = {}

BuildFunction = TypeVar("BuildFunction", bound=Callable[[Layers, int, int], Model])


def register(
    name: str, *, num_classes: int, in_chans: int, size: int | tuple[int, int]
) -> Callable[[BuildFunction], BuildFunction]:
    """Register ``build(layers, num_classes, in_chans)`` under ``name``, with the paper's task as default."""
    height, width = (size, size) if isinstance(size, int) else size

    def decorate(build: BuildFunction) -> BuildFunction:
        if name in _MODELS:
            raise ValueError(f"model {name!r} is registered twice")
        _MODELS[name] = Builder(build, num_classes, in_chans, (height, width))
        return build

    return decorate


def layers_of(op: str, grad: GradientRule | None = None, recenter: bool = False) -> Layers:
    """Return the layer classes of ``op``; ``grad`` (None: the paper's rule) and ``recenter`` are for adder layers.

    Raises UserError for an unknown op, and for a rule or recenter=True without adder layers.
    """
    relu = partial(nn.ReLU, inplace=True)
    if op == "adder":
        options: dict[str, Any] = {"grad": grad or GradientRule(), "recenter": recenter}
        conv2d, linear = partial(AdderConv2d, **options), partial(AdderLinear, **options)
        return Layers(conv2d, linear, relu, first=conv2d, last=linear)
    if op not in OPS:
        raise UserError(f"op={op} is unknown: expected one of {', '.join(OPS)}")
    if grad is not None:
        raise UserError(f"op={op} has no gradient rule, but grad={grad} was given: leave it out")
    if recenter:
        raise UserError(f"op={op} has no adder layers, but recenter=True was given: leave it out")
    if op == "binary":
        return Layers(BinaryConv2d, BinaryLinear, nn.Identity, first=nn.Conv2d, last=nn.Linear)
    return Layers(nn.Conv2d, nn.Linear, relu, first=nn.Conv2d, last=nn.Linear)


def list_models() -> list[str]:
    """Return the names that create_model takes, sorted."""
    return sorted(_MODELS)


def create_model(
    name: str,
    op: str = "adder",
    num_classes: int | None = None,
    in_chans: int | None = None,
    grad: GradientRule | Mapping[str, str] | None = None,
    recenter: bool = False,
    pretrained: bool = False,
) -> Model:
    """Build a network of the paper, freshly initialised or trained.

    Args:
        name: one of ``list_models()``.
        op: "adder" (L1 distance, no multiplication), "conv" (the CNN) or "binary" (the binary network); weights
            have the same names and shapes in all three, except the last normalisation of LeNet++.
        num_classes, in_chans: default to the paper's task, e.g. 10 and 1 for lenet5bn.
        grad: gradient rule of the adder layers, a GradientRule or its fields as a mapping.
        recenter: every adder layer adds sum |W| to its outputs, which 16-bit training needs (AdderConv2d).
        pretrained: take the weights that the package holds for this name and op (torchadder/pretrained/README.md).

    Returns a float32 Model in training mode, each layer initialised as its class does it: (N, in_chans, H, W) ->
    logits (N, num_classes). A pretrained one is in evaluation mode.

    Raises UserError for an unknown name or op, a count below 1, an unknown gradient rule, for a rule or recenter=True
    without adder layers, and where the package has no weights for such a network.
    """
    if name not in _MODELS:
        raise UserError(f"model={name} is unknown: expected one of {', '.join(list_models())}")
    builder = _MODELS[name]
    classes = _count("num_classes", builder.num_classes if num_classes is None else num_classes)
    channels = _count("in_chans", builder.in_chans if in_chans is None else in_chans)
    rule = _rule_of(op, grad)
    config = {
        "name": name,
        "op": op,
        "num_classes": classes,
        "in_chans": channels,
        "grad": None if rule is None else rule._asdict(),
        "recenter": recenter,
    }
    layers = layers_of(op, rule, recenter)
    if pretrained:
        return _pretrained(config, rule)
    model = builder.build(layers, classes, channels)
    model.config = config
    model.input_size = (channels, *builder.size)
    return model


def _pretrained(config: dict[str, Any], rule: GradientRule | None) -> Model:
    """Return the trained network in the package, with the gradient rule that further training is to follow.

    Raises UserError where there is none of this ``config``.
    """
    model = Model.from_package(f"{config['name']}-{config['op']}")
    for layer in model.modules():
        if isinstance(layer, AdderConv2d | AdderLinear) and rule is not None:
            layer.grad = rule
    model.config["grad"] = config["grad"]
    for argument, value in config.items():
        if value != model.config[argument]:
            raise UserError(f"{argument}={value}: the pretrained network has {argument}={model.config[argument]}")
    return model


def _count(name: str, value: Any) -> int:
    """Return ``value`` as an int, which a configuration in JSON needs. Raises UserError unless it is at least 1."""
    try:
        count = operator.index(value)
    except TypeError:
        raise UserError(f"{name}={value!r} is no integer: expected at least 1") from None
    if count < 1:
        raise UserError(f"{name}={count} is out of range: expected at least 1")
    return count


def _rule_of(op: str, grad: GradientRule | Mapping[str, str] | None) -> GradientRule | None:
    if grad is None:
        return GradientRule() if op == "adder" else None
    try:
        rule = GradientRule(**grad) if isinstance(grad, Mapping) else grad  # type: ignore[arg-type]
        check_rule(rule)
    except (TypeError, ValueError) as error:
        raise UserError(f"grad={grad!r} is no gradient rule: {error}") from error
    return rule
