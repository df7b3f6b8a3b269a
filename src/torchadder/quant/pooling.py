"""Pooling in a traced network, in whatever spelling: a module, a function, or a mean over positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

Pair = tuple[int, int]
MAX = (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)
AVERAGE = (nn.AvgPool2d, F.avg_pool2d)
GLOBAL = (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
MEAN = ("mean", torch.mean)
Arguments = tuple[tuple[str, ...], dict[str, Any]]
MAX_ARGUMENTS: Arguments = (
    ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False},
)
AVERAGE_ARGUMENTS: Arguments = (
    ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    {"stride": None, "padding": 0, "ceil_mode": False, "divisor_override": None},
)


@dataclass(frozen=True)
class Pooling:
    """Windows of an image; ``largest``: the largest number of each, or else the mean."""

    largest: bool
    kernel: Pair
    stride: Pair
    padding: Pair


def pooling_of(node: fx.Node, target: Any, size: Pair) -> Pooling | None:
    """What ``node`` does to images of ``size``, ``target`` being its module or function; None where it pools nothing.

    Raises ValueError, with the reason, for a pooling that has no integer form.
    """
    if _is(target, MEAN):
        return Pooling(False, size, (1, 1), (0, 0)) if _over_positions(node) else None
    if _is(target, GLOBAL):
        return _global(_options(node, target)["output_size"], size)
    if not _is(target, (*MAX, *AVERAGE)):
        return None
    options = _options(node, target)
    largest = _is(target, MAX)
    kernel, padding = _pair(options["kernel_size"]), _pair(options["padding"])
    stride = kernel if options["stride"] in (None, [], ()) else _pair(options["stride"])
    if options["ceil_mode"] or (largest and _pair(options["dilation"]) != (1, 1)):
        raise ValueError("with dilation or ceil_mode")
    if largest and any(a != b for a, b in (kernel, stride, padding)):
        raise ValueError("with sides of two lengths")
    if not largest and (padding != (0, 0) or options["divisor_override"] is not None):
        raise ValueError("with padding or another divisor")
    return Pooling(largest, kernel, stride, padding)


def is_max(target: Any) -> bool:
    """Whether this is a max pooling."""
    return _is(target, MAX)


def _is(target: Any, kinds: tuple[Any, ...]) -> bool:
    return any(isinstance(target, kind) if isinstance(kind, type) else target == kind for kind in kinds)


def _options(node: fx.Node, target: Any) -> dict[str, Any]:
    """The options of a module, or of the call of a function, defaults included."""
    if isinstance(target, nn.Module):
        return {"divisor_override": None, **vars(target)}
    if _is(target, GLOBAL):
        return {**dict(zip(("output_size",), node.args[1:], strict=False)), **node.kwargs}
    names, defaults = MAX_ARGUMENTS if _is(target, MAX) else AVERAGE_ARGUMENTS
    return {**defaults, **dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _pair(value: Any) -> Pair:
    values = (value,) if isinstance(value, int) or value is None else tuple(value) if _plain(value) else ()
    if len(values) not in (1, 2):
        raise ValueError(f"with sizes that are computed ({value})")
    return values[0], values[-1]


def _plain(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(length is None or isinstance(length, int) for length in value)


def _global(output: Any, size: Pair) -> Pooling:
    """Adaptive pooling whose windows are all alike."""
    rows, columns = (length if wanted is None else wanted for wanted, length in zip(_pair(output), size, strict=True))
    if size[0] % rows or size[1] % columns:
        raise ValueError(f"from {size[0]} x {size[1]} to {rows} x {columns}")
    kernel = size[0] // rows, size[1] // columns
    return Pooling(False, kernel, kernel, (0, 0))


def _over_positions(node: fx.Node) -> bool:
    """Whether a mean is over height and width."""
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(axes, (list, tuple)):
        return False
    return sorted(axis % 4 for axis in axes if isinstance(axis, int)) == [2, 3]
