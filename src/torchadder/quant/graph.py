"""Trace a network with torch.fx, and recognise its operations as modules, functions and methods."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from torchadder.errors import UserError
from torchadder.nn import AdderConv2d, AdderLinear, BinaryConv2d, BinaryLinear

LAYERS = (AdderConv2d, AdderLinear, BinaryConv2d, BinaryLinear, nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (nn.ReLU, F.relu, torch.relu, torch.relu_, "relu", "relu_")
MAX_POOLS = (nn.MaxPool2d, F.max_pool2d, torch.max_pool2d)
AVERAGE_POOLS = (nn.AvgPool2d, F.avg_pool2d)
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d)
MEANS = ("mean", torch.mean)

Pair = tuple[int, int]
Arguments = tuple[tuple[str, ...], dict[str, Any]]
# the positional arguments of the pooling functions after the input, and the defaults
MAX_ARGUMENTS: Arguments = (
    ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False},
)
AVERAGE_ARGUMENTS: Arguments = (
    ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    {"stride": None, "padding": 0, "ceil_mode": False, "divisor_override": None},
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LAYERS) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """Return the graph of ``model``, with each ReLU after a max pooling moved before it. Raises UserError."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # a model's own code may raise anything when it meets a proxy
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot quantize {type(model).__name__}: torch.fx does not trace it ({reason})") from error
    _move_relu_before_max_pool(model, graph)
    return graph


def target_of(model: nn.Module, node: fx.Node) -> Any:
    """Return the module, function or name of a method that a node calls."""
    return model.get_submodule(str(node.target)) if node.op == "call_module" else node.target


def unsupported(node: fx.Node, target: Any, detail: str = "") -> UserError:
    """Return the error that names a node without an integer form: its place in the model and what it calls."""
    place = str(node.target) if node.op == "call_module" else node.name
    kind = type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", str(target))
    return UserError(f"cannot quantize {place}, {kind} {detail}".rstrip() + ": it has no integer form here")


def is_relu(target: Any) -> bool:
    """Return whether ``target`` is a ReLU."""
    return _is(target, RELUS)


def is_max_pool(target: Any) -> bool:
    """Return whether ``target`` is a max pooling."""
    return _is(target, MAX_POOLS)


def is_passthrough(node: fx.Node, target: Any) -> bool:
    """Return whether a node leaves the numbers as they are: it computes nothing, or flattens all but the first axis."""
    if isinstance(target, nn.Flatten):
        return (target.start_dim, target.end_dim) == (1, -1)
    if target in (torch.flatten, "flatten"):
        axes = {**dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)), **node.kwargs}
        return axes in ({"start_dim": 1}, {"start_dim": 1, "end_dim": -1})
    if target in ("view", "reshape", torch.reshape):
        shape = node.args[1:] if len(node.args) != 2 else node.args[1]
        flat = isinstance(shape, (list, tuple)) and len(shape) == 2 and bool(shape[1] == -1)
        return flat and _is_batch_size(shape[0])  # type: ignore[index]  # flat says that it is a list
    return isinstance(target, (nn.Identity, nn.Dropout)) or target in ("contiguous", F.dropout)


def is_size(node: fx.Node) -> bool:
    """Return whether a node is a size of a tensor, or all of them: x.size(0), x.size()[0], x.shape."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_size(node.args[0])
    return node.target == "size" or (node.target is getattr and node.args[1:] == ("shape",))


@dataclass(frozen=True)
class Pooling:
    """Describe a pooling: the maximum or the mean of each window; kernel, stride and padding are (rows, columns)."""

    maximum: bool
    kernel: Pair
    stride: Pair
    padding: Pair


def pooling_of(node: fx.Node, target: Any, size: Pair) -> Pooling | None:
    """Return what ``node``, which calls ``target``, does to images of ``size``; None where it is no pooling.

    Raises ValueError, with the reason, for a pooling that has no integer form.
    """
    if _is(target, MEANS):
        return Pooling(False, size, (1, 1), (0, 0)) if _is_over_positions(node) else None
    if _is(target, ADAPTIVE_POOLS):
        return _adaptive(_options(node, target)["output_size"], size)
    maximum = is_max_pool(target)
    if not maximum and not _is(target, AVERAGE_POOLS):
        return None
    options = _options(node, target)
    kernel, padding = _pair(options["kernel_size"]), _pair(options["padding"])
    stride = kernel if options["stride"] in (None, [], ()) else _pair(options["stride"])
    if options["ceil_mode"] or (maximum and _pair(options["dilation"]) != (1, 1)):
        raise ValueError("with dilation or ceil_mode")
    if maximum and any(a != b for a, b in (kernel, stride, padding)):
        raise ValueError("with a kernel, stride or padding that is not square")
    if not maximum and (padding != (0, 0) or options["divisor_override"] is not None):
        raise ValueError("with padding or another divisor")
    return Pooling(maximum, kernel, stride, padding)


def _move_relu_before_max_pool(model: nn.Module, graph: fx.Graph) -> None:
    """Exchange max pooling and a ReLU after it: the numbers stay the same, and ReLU follows a layer."""
    for node in list(graph.nodes):
        pool = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if pool is None or not is_relu(target_of(model, node)):
            continue
        if is_max_pool(target_of(model, pool)) and len(pool.users) == 1:
            source = pool.args[0]
            node.replace_all_uses_with(pool, lambda user, node=node: user is not node)
            pool.args = (node, *pool.args[1:])
            node.args = (source, *node.args[1:])
            pool.prepend(node)


def _is(target: Any, kinds: tuple[Any, ...]) -> bool:
    return any(isinstance(target, kind) if isinstance(kind, type) else target == kind for kind in kinds)


def _is_batch_size(value: Any) -> bool:
    """Return whether ``value`` is the number of images: x.size(0), x.size()[0] or x.shape[0], of any tensor x."""
    return isinstance(value, fx.Node) and is_size(value) and value.args[1:] == (0,)


def _options(node: fx.Node, target: Any) -> dict[str, Any]:
    """Return the options of a pooling, defaults included."""
    if isinstance(target, nn.Module):
        return {"divisor_override": None, **vars(target)}
    if _is(target, ADAPTIVE_POOLS):
        return {**dict(zip(("output_size",), node.args[1:], strict=False)), **node.kwargs}
    names, defaults = MAX_ARGUMENTS if is_max_pool(target) else AVERAGE_ARGUMENTS
    return {**defaults, **dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _pair(value: Any) -> Pair:
    values = (value,) if isinstance(value, int) or value is None else tuple(value) if _is_plain(value) else ()
    if len(values) not in (1, 2):
        raise ValueError(f"with sizes that are computed ({value})")
    return values[0], values[-1]


def _is_plain(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(length is None or isinstance(length, int) for length in value)


def _adaptive(output: Any, size: Pair) -> Pooling:
    """Return an adaptive average pooling with windows of one size. Raises ValueError where they differ."""
    rows, columns = (length if wanted is None else wanted for wanted, length in zip(_pair(output), size, strict=True))
    if size[0] % rows or size[1] % columns:
        raise ValueError(f"from {size[0]} x {size[1]} to {rows} x {columns}")
    kernel = size[0] // rows, size[1] // columns
    return Pooling(False, kernel, kernel, (0, 0))


def _is_over_positions(node: fx.Node) -> bool:
    """Return whether a mean is over height and width."""
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(axes, (list, tuple)):
        return False
    return sorted(axis % 4 for axis in axes if isinstance(axis, int)) == [2, 3]
