"""The twins of torch's layers: which stands for which under each operator, which can be exchanged, and how."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from torchadder.nn import Adder, AdderConv1d, AdderConv2d, AdderConv3d, AdderLinear
from torchadder.nn.binary import Binary, BinaryConv2d, BinaryLinear


class Twins(NamedTuple):
    """One layer under the three operators; None where an operator lacks it."""

    conv: type[nn.Module]
    adder: type[nn.Module] | None
    binary: type[nn.Module] | None


TWINS = (
    Twins(nn.Conv1d, AdderConv1d, None),
    Twins(nn.Conv2d, AdderConv2d, BinaryConv2d),
    Twins(nn.Conv3d, AdderConv3d, None),
    Twins(nn.Linear, AdderLinear, BinaryLinear),
)
OPS = Twins._fields
_TWINS_OF = {kind: twins for twins in TWINS for kind in twins if kind is not None}
_WEIGHTED = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def is_weighted(module: nn.Module) -> bool:
    """Whether the module multiplies by weights, or is the twin of one that does."""
    return isinstance(module, _WEIGHTED)


def twin(layer: nn.Module, to: str) -> type[nn.Module] | None:
    """The class that stands for the layer's under the operator; None for a subclass and where there is none."""
    twins = _TWINS_OF.get(type(layer))
    return None if twins is None else getattr(twins, to)


def why_not(layer: nn.Module, to: str) -> str | None:
    """Why the layer cannot be exchanged for its twin; None where it can."""
    kind = type(layer)
    if isinstance(layer, LazyModuleMixin):
        return "it has no weight yet; run the model once first"
    if is_parametrized(layer):
        return "parametrised; remove the parametrisation first"
    if kind not in _TWINS_OF and (base := _torch_twin(kind)) is not None:
        return f"a subclass of {base.__name__}; only torch's own layer is converted"
    if twin(layer, to) is None:
        return f"no {to} twin"
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is computed; remove weight_norm, spectral_norm or the pruning first"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}"
    if not weight.is_floating_point() or weight.layout != torch.strided:
        return f"its weight is {weight.dtype}, {weight.layout}"
    return None


def _torch_twin(kind: type[nn.Module]) -> type[nn.Module] | None:
    return next((base for base in kind.__mro__ if base in _TWINS_OF), None)


def exchange(layer: nn.Module, to: str, options: dict[str, Any]) -> None:
    """Make the layer one of its twin's class; its parameters and hooks, and all references to it, stay."""
    for name in ("grad", "recenter"):
        vars(layer).pop(name, None)
    layer.__class__ = twin(layer, to)  # type: ignore[assignment]
    vars(layer).update(options)
    vars(layer.weight).pop("adder", None)


# torch's fused inference multiplies by linear1.weight and linear2.weight past the layers; what it asks first:
_FUSED = ((nn.TransformerEncoderLayer, "activation_relu_or_gelu"), (nn.TransformerEncoder, "use_nested_tensor"))


def settle(module: nn.Module) -> None:
    """After the exchange: mark the adder weights, and allow fused inference just where all layers are products."""
    for part in module.modules():
        if isinstance(part, Adder):
            part._mark()
        for kind, permission in _FUSED:
            if isinstance(part, kind) and hasattr(part, permission):
                withdrawn = f"_{permission}_of_products"
                if any(isinstance(layer, Adder | Binary) for layer in part.modules()):
                    vars(part).setdefault(withdrawn, getattr(part, permission))
                    setattr(part, permission, 0)
                elif withdrawn in vars(part):
                    setattr(part, permission, vars(part).pop(withdrawn))
