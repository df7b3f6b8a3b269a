"""convert: layers exchanged for their twins of another operator, in any network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchadder.functional import DEFAULT_RULE, GradientRule

from .flow import Flow, find_flow
from .report import Conversion, Row
from .twins import OPS, exchange, is_weighted, settle, twin, why_not

Filter = Callable[[str, nn.Module], bool]


def convert(
    module: nn.Module,
    to: Literal["adder", "binary", "conv"] = "adder",
    filter_fn: Filter | None = None,
    *,
    grad: GradientRule = DEFAULT_RULE,
    recenter: bool = False,
    rescale: bool = False,
    example_input: Any = None,
) -> nn.Module:
    """Exchange the convolutions and linear layers of any module for adder layers, binary layers, or back.

        model = torchadder.convert(model)        # all but the first and the last layer
        print(model.conversion)                  # what became of each layer, and why

    It happens in place: each layer changes its class and nothing else. Parameters stay the same objects under the same
    names, bit for bit, so that optimisers, tied weights, hooks, shared modules and state_dicts go on as before, and
    converting back gives the first network again. Exactly nn.Conv1d, nn.Conv2d, nn.Conv3d and nn.Linear and their
    twins in torchadder.nn are exchanged; subclasses, computed weights and the like are left and named in the report.

    A trained convolutional network is no trained AdderNet: train it after converting it. Its filters are a good start
    once they are rescaled.

    Args:
        module: any module; a layer by itself is converted as such.
        to: "adder", "binary" (2-d convolutions and linear layers only) or "conv".
        filter_fn: called with the dotted name and the layer, says which to convert. Without it the layers that run
            first and last are kept as they are, as in the paper; to="conv" keeps none.
        grad, recenter: options of the adder layers, as in AdderConv2d.
        rescale: bring the weight of each converted adder layer to a root mean square of 1, which adder layers start
            from; torch's convolutions start smaller, and far more steps pass before an adder layer has grown.
        example_input: a tensor, a tuple of arguments or a dict of keyword arguments for the module, which then runs
            once, in evaluation mode, and is left as it was. From that run the order of layers is known for certain.
            Without it torch.fx traces the module; where it cannot, the order of definition serves.

    Returns the module, with a Conversion as its attribute ``conversion``.

    Warns of adder layers that no normalisation follows and of binary layers that see no negative input. Raises
    TypeError for what is not an nn.Module, ValueError for an unknown operator, a module without convolution or linear
    layer, and when there is nothing to convert; the module is then as it was.
    """
    _check(module, to, grad, recenter or rescale)
    network = _unwrapped(module)
    asks = to != "conv" and not is_weighted(network)
    flow = find_flow(network, example_input) if asks else None
    layers = {name: layer for name, layer in network.named_modules() if is_weighted(layer)}
    rows = [_row(name, layer, to, flow, filter_fn) for name, layer in layers.items()]
    if not any(row.outcome in ("converted", "already") for row in rows):
        raise ValueError(f"{type(network).__name__} is not converted: {_why(rows, filter_fn)}")
    chosen = {row.name: layers[row.name] for row in rows if row.outcome == "converted"}
    if flow is not None:
        _warn(chosen, to, flow)
    for layer in chosen.values():
        exchange(layer, to, {"grad": grad, "recenter": recenter} if to == "adder" else {})
        if rescale:
            _rescale(layer.weight)
    settle(network)
    found = None if flow is None else flow.found
    module.conversion = Conversion(type(network).__name__, to, found, tuple(rows))  # type: ignore[assignment]
    return module


@torch.no_grad()
def _rescale(weight: Tensor) -> None:
    size = weight.float().square().mean().sqrt()
    weight.div_(torch.where(size > 0, size, 1))


def _check(module: nn.Module, to: str, grad: GradientRule, changes: bool) -> None:
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(f"convert takes an nn.Module that is not scripted, got {type(module).__name__}")
    if to not in OPS:
        raise ValueError(f"cannot convert to {to!r}: choose one of {', '.join(OPS)}")
    grad.check()
    if to != "adder" and (changes or grad != DEFAULT_RULE):
        raise ValueError(f"grad, recenter and rescale are options of adder layers: leave them out with to={to!r}")
    if not isinstance(getattr(module, "conversion", None), Conversion | None):
        kind = type(module).__name__
        raise ValueError(f"{kind} has a `conversion` of its own, the report's place: convert(nn.Sequential(model))[0]")


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside torch.compile's and the parallel wrappers, which share its layers."""
    parallel = isinstance(module, nn.DataParallel | DistributedDataParallel)
    inner = module._modules.get("module" if parallel else "_orig_mod")
    return module if inner is None else _unwrapped(inner)


def _row(name: str, layer: nn.Module, to: str, flow: Flow | None, filter_fn: Filter | None) -> Row:
    """What becomes of the layer; decided for all of them before the first is touched."""
    kind, target = type(layer).__name__, twin(layer, to)
    ends = [] if flow is None else [end for end in ("first", "last") if layer is getattr(flow, end)]
    left = why_not(layer, to)
    if left is None and flow is not None and flow.uses_past(layer):
        left = "its weight is used without calling it"
    if left is not None or target is None:
        return Row(name, kind, kind, "left", left or "")
    if filter_fn is not None and not filter_fn(name, layer):
        return Row(name, kind, kind, "kept", "not chosen")
    if target is type(layer):
        return Row(name, kind, kind, "already")
    if filter_fn is None and ends:
        return Row(name, kind, kind, "kept", f"runs {' and '.join(ends)}")
    return Row(name, kind, target.__name__, "converted")


def _why(rows: list[Row], filter_fn: Filter | None) -> str:
    """Why no layer is converted, in one line."""
    kept = [row for row in rows if row.outcome == "kept"]
    if not rows:
        return "it has no convolution and no linear layer"
    if not kept:
        return "; ".join(f"{row.name} ({row.before}): {row.note}" for row in rows[:3])
    if filter_fn is not None:
        return f"filter_fn chose none of its {len(kept)} layers ({_shortened([row.name for row in kept])})"
    return (
        "the layers that run first and last are kept, and no other is a torch convolution or linear layer; "
        "filter_fn=lambda name, layer: True takes those too"
    )


def _warn(layers: dict[str, nn.Module], to: str, flow: Flow) -> None:
    unsure = " (judged by the order of definition; example_input would tell for certain)" * (flow.found == "defined")
    bare = [name for name, layer in layers.items() if to == "adder" and flow.lacks_normalisation(layer)]
    if bare:
        text = (
            f"no normalisation follows {len(bare)} of the adder layers: {_shortened(bare)}{unsure}; their outputs are "
            "all negative and large, and the network may stay at chance: put one after each, or keep them by filter_fn"
        )
        warnings.warn(text, stacklevel=3)
    blind = [name for name, layer in layers.items() if to == "binary" and flow.never_sees_negatives(layer)]
    if blind:
        text = (
            f"{len(blind)} of the binary layers see no negative input: {_shortened(blind)}{unsure}; every sign is then "
            "+1: take the ReLU or its like away, as the sign is the nonlinearity"
        )
        warnings.warn(text, stacklevel=3)


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
