"""Capture what a network computes: a functional graph of torch's operators, with the values of its parameters.

torch.export records the operators that run, whatever module, subclass, hook or function calls them. In the graph
nothing is in place, every argument has its value, and batch normalisation, convolutions, poolings and the operators
of torchadder are one node each.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx.node import map_arg

from torchadder.errors import UserError, in_one_line
from torchadder.functional import autocast

BATCH = 2  # images of the example: torch.export takes a batch of one for a network that runs on single images only
RESHAPES = ("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::squeeze", "aten::unsqueeze")
IDENTITIES = ("aten::clone", "aten::contiguous", "aten::alias", "aten::detach")
SPLITS = ("aten::split", "aten::split_with_sizes")
SOFTMAX = ("aten::log_softmax", "aten::softmax", "aten::_log_softmax", "aten::_softmax")
REDUCTIONS = ("aten::mean", "aten::amax")
CLAMPS = ("aten::relu", "aten::relu6", "aten::hardtanh", "aten::clamp", "aten::clip")
BATCH_NORM = torch.ops.aten.batch_norm.default
MAX_POOLS = {
    "aten::max_pool1d": torch.ops.aten.max_pool1d.default,
    "aten::max_pool2d": torch.ops.aten.max_pool2d.default,
}

_exporting = threading.Lock()


class Network:
    """Hold a captured network.

    Attributes:
        name: of its class, for messages.
        module: the graph, as a module whose inputs are ``inputs(images)``.
        images, output: the node of the images (N, C, H, W), and the one of the logits.
        nodes: those between the two that compute something from the images, in order.
        dropped: the softmax that followed the logits, "" where there was none.
    """

    def __init__(
        self, name: str, program: ExportedProgram, tensors: dict[str, Tensor], original: nn.Module | None = None
    ):
        """Take the exported network, its parameters and buffers, and the module with these that was exported."""
        self.name, self._original = name, original
        self.module = program.graph_module
        graph, signature = self.module.graph, program.graph_signature
        if len(signature.user_inputs) != 1 or len(signature.user_outputs) != 1:
            raise UserError(f"cannot quantize {name}: expected one input, the images, and one output, the logits")
        places = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        places |= signature.inputs_to_lifted_tensor_constants
        placeholders = graph.find_nodes(op="placeholder")
        self.images = next(node for node in placeholders if node.name == signature.user_inputs[0])
        self._tensors = {node: tensors[places[node.name]] for node in placeholders if node is not self.images}
        output = next((node for node in graph.nodes if node.name == signature.user_outputs[0]), None)
        if output is None:
            raise UserError(f"cannot quantize {name}: its output is no tensor: expected the logits")
        self.dropped = ""
        while operator_of(output) in SOFTMAX and output.args[1] % (len(sizes(output)) + 1) == 1:
            self.dropped = operator_of(output).rpartition("::")[2].lstrip("_")
            output = output.all_input_nodes[0]
        graph.output_node().args = (output,)
        if not 1 <= len(sizes(self.images)) <= 3 or not all(isinstance(side, int) for side in sizes(self.images)):
            raise UserError(f"cannot quantize {name}: expected images (N, C, H, W), of which only N is dynamic")
        _simplify(self)
        self.output: fx.Node = graph.output_node().all_input_nodes[0]
        self.nodes = self._find_nodes()
        self.module.recompile()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of an image."""
        return image_shape(sizes(self.images))

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters, each once."""
        return list(dict.fromkeys(t for t in self._tensors.values() if isinstance(t, nn.Parameter)))

    def inputs(self, images: Tensor) -> list[Tensor]:
        """Return the arguments of ``module``: parameters, buffers and the images."""
        return [self._tensors.get(node, images) for node in self.module.graph.find_nodes(op="placeholder")]

    @torch.no_grad()
    def constants(self) -> dict[fx.Node, Any]:
        """Return the values of all nodes that depend on parameters and buffers alone, as these are now."""
        found: dict[fx.Node, Any] = {node: tensor.detach() for node, tensor in self._tensors.items()}
        for node in self.module.graph.nodes:
            if node.op == "call_function" and not is_random(node) and all(n in found for n in node.all_input_nodes):
                args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
                found[node] = node.target(*args, **kwargs)
        return found

    def place(self, node: fx.Node) -> str:
        """Return the place of a node and what it is, for messages: "features.0, Conv2d"."""
        path, kind = next(reversed(node.meta.get("nn_module_stack", {"": ("", "")}).values()))
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        is_known = kind.startswith(("torch.nn.", "torchadder.nn."))
        name = operator_of(node).rpartition("::")[2].strip("_")
        path = path.removeprefix("network").lstrip(".") or self.name
        return f"{path}, {kind.rpartition('.')[2] if is_known else name}"

    def place_of(self, name: str) -> str:
        """Return the place of the node of this name, for messages."""
        node = next(node for node in self.module.graph.nodes if node.name == name)
        return "the images" if node is self.images else self.place(node)

    def warn_of_softmax(self) -> None:
        """Warn where a softmax after the logits was dropped."""
        if self.dropped:
            warnings.warn(
                f"the final {self.dropped} is left out: the program returns logits, whose largest is the same",
                stacklevel=3,
            )

    @torch.no_grad()
    def check_against_original(self, images: Tensor) -> None:
        """Check that the graph computes from ``images`` what the module does that was traced with BATCH images.

        Raises UserError where it does not: torch.export cannot see what depends on the number of images, on randomness
        outside of torch, or on earlier calls. Logits that are not finite are left to observe, which says where.
        """
        if self._original is None:
            return
        expected, found = self._original(images), self.module(*self.inputs(images))
        if self.dropped:
            found = (F.log_softmax if self.dropped == "log_softmax" else F.softmax)(found, 1)
        expected, found = expected.float().flatten(1), found.float().flatten(1)
        if not bool(found.isfinite().all()):
            return
        if not (expected - found).abs().max() <= 0.05 * expected.abs().max() + 1e-6:
            raise UserError(
                f"cannot quantize {self.name}: with {len(images)} images it computes something else than traced with "
                f"{BATCH}: its forward must not depend on their number, on randomness or on earlier calls"
            )

    def freeze_unreached(self, images: Tensor) -> None:
        """Let parameters that get no gradient from the output keep their value: those used under torch.no_grad()."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self._original is None or not parameters:
            return
        logits = self._original(images[:BATCH])
        unreached: Sequence[Tensor | None] = [None] * len(parameters)
        if logits.requires_grad:
            unreached = torch.autograd.grad(logits.float().sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, unreached, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _find_nodes(self) -> list[fx.Node]:
        needed, waiting = set[fx.Node](), [self.output]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        known = set(self.constants())
        return [node for node in self.module.graph.nodes if node in needed - known and node is not self.images]


class _Logits(nn.Module):
    """Return the logits of a network: its output, or what it calls logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        output = self.network(images)
        if not isinstance(output, Tensor):
            output = output.get("logits", output) if isinstance(output, dict) else getattr(output, "logits", output)
        return output


def capture(model: nn.Module | ExportedProgram, images: Tensor) -> Network:
    """Return what ``model`` computes from ``images`` (N, C, H, W), of which only shape, dtype and device matter.

    A module is copied and set to eval mode. What wraps it, nn.DataParallel, DistributedDataParallel or torch.compile,
    is left out. Of a model's output with a field "logits", as those of transformers, that is taken.

    torch.export patches nn.Module while it runs: one export runs at a time. Other threads can run models meanwhile.

    Raises UserError for a model that does not run on the images, or that torch.export does not trace.
    """
    if autocast.is_on(images):
        raise UserError("torch.autocast is on, which rounds what is measured: quantize outside of it")
    if isinstance(model, ExportedProgram):
        tensors = {name: copy.deepcopy(tensor.detach()) for name, tensor in model.constants.items()}
        tensors |= {name: copy.deepcopy(tensor) for name, tensor in model.state_dict.items()}
        exported = Network("the exported network", _functional("the exported network", model), tensors)
        if exported.shape != image_shape(images.shape[1:]):
            expected = f"expected images (N, {', '.join(map(str, exported.shape))}), got {kind_of(images)}"
            raise UserError(f"cannot quantize the exported network: {expected}")
        return exported
    name = type(unwrapped(model)).__name__
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {name}: expected an nn.Module or an ExportedProgram")
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"cannot quantize {name}: torch.export does not trace it, pass the module it was made from")
    network = _Logits(copied(model)).eval()
    example = images[:1].detach().expand(BATCH, *images.shape[1:]).clone()
    _check_that_it_runs(name, network, example)
    program = _functional(name, network, example)
    tensors = {**dict(network.named_buffers(remove_duplicate=False)), **program.constants}
    tensors |= dict(network.named_parameters(remove_duplicate=False))
    return Network(name, program, tensors, network)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside nn.DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        wraps = isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))
        inner = model.module if wraps else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of the model, unwrapped. torch cannot copy computed tensors, which hooks and pruned layers keep.

    Raises UserError where a module holds something else that cannot be copied.
    """
    model = unwrapped(model)
    values = [value for module in model.modules() for value in _held(vars(module))]
    memo = {id(v): v.detach().clone() for v in values if isinstance(v, Tensor) and not v.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:  # what copy and pickle raise for a lock or a file
        reason = f"it holds something that cannot be copied ({in_one_line(error)})"
        raise UserError(f"cannot quantize {type(model).__name__}: {reason}, remove that from the module") from error


def _held(value: Any) -> Iterator[Any]:
    """Yield what plain containers hold, through all levels; modules are left to their parent's modules()."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple, set, deque)):
        yield value
        return
    for item in value:
        yield from _held(item)


def kind_of(images: Any) -> str:
    """Return dtype and shape of a batch of images, for messages; the name of its class where it is no tensor."""
    if not isinstance(images, Tensor):
        return type(images).__name__
    sides = ("N" if axis == 0 and side else str(side) for axis, side in enumerate(images.shape))
    return f"{images.dtype} ({', '.join(sides)})"


def operator_of(node: fx.Node) -> str:
    """Return the name of the operator that a node calls, "aten::add", without the overload; "" for another node."""
    if node.op != "call_function":
        return ""
    target: Any = node.target
    return target.name().partition(".")[0] if hasattr(target, "overloadpacket") else str(target.__name__)


def is_random(node: fx.Node) -> bool:
    """Return whether a node draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def sizes(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's value without the first axis, that of the images; () where it is no tensor."""
    return tuple((_sizes(node) or ())[1:])


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (C, H, W) of a shape without the first axis: rows (C, L) have height 1, vectors are one pixel."""
    channels, height, width = (*shape[:1], *[1] * (3 - len(shape)), *shape[1:])
    return channels, height, width


def _sizes(node: fx.Node) -> Sequence[int] | None:
    value = node.meta.get("val")
    return value.shape if isinstance(value, Tensor) else None


@torch.no_grad()
def _check_that_it_runs(name: str, network: nn.Module, images: Tensor) -> None:
    """Raise UserError where ``network`` does not run on ``images``: torch.export would log its traceback as well."""
    try:
        network(images)
    except Exception as error:  # a model's own code may raise anything
        reason = f"it does not run on images {kind_of(images)} alone ({in_one_line(error)})"
        raise UserError(f"cannot quantize {name}: {reason}") from error


def _functional(name: str, model: ExportedProgram | nn.Module, example: Tensor | None = None) -> ExportedProgram:
    try:
        with _exporting, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it calls itself
            if isinstance(model, nn.Module):
                model = export(model, (example,), dynamic_shapes=({0: Dim.AUTO},), strict=False)
            return model.run_decompositions({})
    except Exception as error:  # a model's own code may raise anything
        reason = in_one_line(error)
        if "data-dependent" in reason:
            reason = "its forward, or a hook, takes a number from the values of an image, to branch on it for example"
        raise UserError(f"cannot quantize {name}: torch.export does not trace it ({reason})") from error


def _simplify(network: Network) -> None:
    """Give operators that are spelled in many ways one form, and move clamps and normalisation before a max pooling."""
    graph = network.module.graph
    batch = str(_sizes(network.images)[0])  # type: ignore[index]
    constants = network.constants()
    for node in list(graph.nodes):
        if operator_of(node) == "getitem":
            _take_output(node, output := node.all_input_nodes[0], node.args[1])
            if not output.users:
                graph.erase_node(output)
        name, values = operator_of(node), _sizes(node)
        source: Any = node.args[0] if node.args else None
        if name == "aten::select" and str(source.meta["val"].shape[node.args[1]]) == "1":
            name = "aten::squeeze"
        if name in RESHAPES and values is not None and len(values) > 1 and str(values[0]) == batch:
            source = source.args[0] if operator_of(source) == "aten::reshape" else source
            node.target, node.kwargs = torch.ops.aten.reshape.default, {}
            node.args = (source, [-1, *values[1:]])
            _take_channel_shuffle(node)
        elif name in REDUCTIONS and values is not None and len(values) == 2 and node.args[1] in ([2], [-1]):
            # Of images (N, C, H, W), source is (N, C, H * W), or reduced over the last axis.
            is_reduced = operator_of(source) == name and source.args[1] in ([3], [-1])
            is_flat = operator_of(source) == "aten::reshape" and sizes(source.args[0])[:1] == sizes(source)[:1]
            if (is_reduced or is_flat) and len(sizes(source.args[0])) == 3:
                node.args = (source.args[0], [2, 3])
        elif name in CLAMPS or (
            node.target is BATCH_NORM and bool((constants.get(node.args[1], torch.ones(1)) > 0).all())
        ):
            _move_before_max_pool(node)
    graph.eliminate_dead_code()


def _take_output(node: fx.Node, source: fx.Node, number: Any) -> None:
    """Make an operator of one output of output ``number`` of one that has several, where there is one."""
    name, args = operator_of(source).removesuffix("_with_indices"), cast(tuple[Any, ...], source.args)
    x = args[0]
    if name == "aten::_native_batch_norm_legit_no_training":
        *tensors, momentum, eps = args
        node.target, node.args = BATCH_NORM, (*tensors, False, momentum, eps, False)
    elif name in SPLITS and (axis := (*args, 0)[2] % (len(sizes(x)) + 1)):  # not of the images themselves
        *before, length = (part.shape[axis] for part in source.meta["val"][: number + 1])
        node.target, node.args = torch.ops.aten.slice.Tensor, (x, axis, sum(before), sum(before) + length)
    elif name == "aten::max" and number == 0:
        node.target, node.args = torch.ops.aten.amax.default, (x, [args[1]], *args[2:])
    elif name in MAX_POOLS and number == 0:
        node.target, node.args = MAX_POOLS[name], args
    elif name.startswith("aten::adaptive_max_pool") and number == 0:
        windows = [*zip(sizes(x)[1:], args[1], strict=True)]
        if all(side % count == 0 for side, count in windows):
            kernel = [side // count for side, count in windows]
            node.target, node.args = MAX_POOLS[name.replace("adaptive_", "")], (x, kernel)


def _take_channel_shuffle(node: fx.Node) -> None:
    """Make a channel shuffle of a reshape that ends one: its channels were split in two axes, which were exchanged."""
    exchange: Any = node.args[0]
    while operator_of(exchange) in IDENTITIES:
        exchange = exchange.args[0]
    if operator_of(exchange) not in ("aten::transpose", "aten::permute"):
        return
    split = exchange.args[0]
    axes = [*range(1, len(sizes(split)) + 2)]
    is_exchange = [*exchange.target(torch.empty(axes), *exchange.args[1:]).shape] == [1, 3, 2, *axes[3:]]
    if is_exchange and operator_of(split) == "aten::reshape":
        image = split.args[0]
        if sizes(image) == sizes(node) and sizes(split)[2:] == sizes(image)[1:]:
            node.target, node.args = torch.ops.aten.channel_shuffle.default, (image, sizes(split)[0])


def _move_before_max_pool(node: fx.Node) -> None:
    """Exchange a rising function and the max pooling before it, which changes no number: it then follows a layer."""
    pool = node.args[0]
    if not isinstance(pool, fx.Node) or operator_of(pool) not in MAX_POOLS or len(pool.users) > 1:
        return
    node.replace_all_uses_with(pool)
    source = pool.all_input_nodes[0]
    node.args, pool.args = (source, *node.args[1:]), (node, *pool.args[1:])
    node.meta["val"], node.meta["moved"] = source.meta["val"], True
    node.append(pool)
