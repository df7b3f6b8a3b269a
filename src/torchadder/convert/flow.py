"""Find the flow of data through a network: the layers that run first and last, and what runs before and after each.

A flow is a list of steps; a step is a module that runs as a whole, or a function that is called between modules. The
steps are recorded on an example input, traced by torch.fx or, where that fails, the modules in order of definition.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from torchadder.errors import UserError

Target = nn.Module | str  # a module that runs as a whole, or the name of a function

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_WEIGHTED = (*_CONVOLUTIONS, nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)

# Names in lower case, without _ and the dimension: MaxPool2d and max_pool2d are the same. A passthrough step returns
# its input, rearranged or averaged; so do all steps with "pool" or "drop" in their name. A query returns something
# other than a tensor's values.
_PASSTHROUGH = frozenset(
    """
    identity sequential flatten unflatten view viewas reshape reshapeas permute transpose swapaxes swapdims movedim
    moveaxis t get contiguous squeeze unsqueeze expand expandas repeat getitem narrow select chunk split tensorsplit
    unbind cat concat concatenate stack hstack vstack pad zeropad constantpad reflectionpad replicationpad circularpad
    upsample upsamplingnearest upsamplingbilinear interpolate pixelshuffle pixelunshuffle channelshuffle roll flip mean
    to type float double half bfloat16 clone detach rearrange
    """.split()  # noqa: SIM905  (as a list of strings: fifty lines)
)
_QUERIES = frozenset({"getattr", "size", "dim", "ndimension", "numel", "len", "isfloatingpoint"})
_NEVER_NEGATIVE = frozenset({"relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "softplus", "abs", "exp", "square"})


class Step(NamedTuple):
    """Hold one call: what was called, and numbers that identify its input and output tensors."""

    target: Target
    inputs: frozenset[int]
    outputs: frozenset[int]


class Flow:
    """Hold the connections between steps. ``found``: how the steps were found, "recorded", "traced" or "defined".

    ``first``, ``last``: the weighted modules that run first and last; one that runs twice can be both.
    ``before``, ``after``: for each target, the targets that produce its inputs and that read its outputs. Passthrough
    steps between two targets are skipped. The target "output" is the output of the network.
    """

    def __init__(self, found: Literal["recorded", "traced", "defined"], steps: list[Step]):
        self.found = found
        runs = [step.target for step in steps if isinstance(step.target, nn.Module) and is_weighted(step.target)]
        self._ran = frozenset(runs)
        self.first: nn.Module | None = runs[0] if runs else None
        self.last: nn.Module | None = runs[-1] if runs else None
        self.before: dict[Target, set[Target]] = defaultdict(set)
        self.after: dict[Target, set[Target]] = defaultdict(set)
        self._inputs: set[int] = set()
        producers: dict[int, set[Target]] = defaultdict(set)
        for target, inputs, outputs in steps:
            if _names(target) & _QUERIES:
                continue
            self._inputs |= inputs
            sources = set().union(*(producers[number] for number in inputs))
            if not _is_passthrough(target):
                self.before[target] |= sources
                for source in sources:
                    self.after[source].add(target)
                sources = {target}
            producers.update(dict.fromkeys(outputs, sources))

    def runs(self, layer: nn.Module) -> bool:
        """Say whether the layer ran: an auxiliary head that only training uses does not."""
        return layer in self._ran

    def lacks_normalisation(self, layer: nn.Module) -> bool:
        return not all(map(is_normalisation, self.after[layer]))

    def never_sees_negatives(self, layer: nn.Module) -> bool:
        sources = self.before[layer]
        return bool(sources) and all(_names(source) & _NEVER_NEGATIVE for source in sources)

    def takes_weight(self, layer: nn.Module) -> bool:
        """Say whether a function takes the layer's weight: it would multiply by it after a conversion too."""
        return id(layer.weight) in self._inputs


def find_flow(module: nn.Module, example_input: Any = None) -> Flow:
    """Return the flow: recorded if there is an example input, else traced, else by the order of definition.

    Raises UserError where the module does not run on the example input, or has lazy layers.
    """
    if example_input is not None and any(map(is_lazy, (*module.parameters(), *module.buffers()))):
        raise UserError(f"{type(module).__name__} has lazy layers: run it once, then convert it")
    with _unchanged(module):
        if example_input is not None:
            return Flow("recorded", _recorded(module, example_input))
        steps = _traced(module)
    return Flow("defined", _defined(module)) if steps is None else Flow("traced", steps)


def is_weighted(module: nn.Module) -> bool:
    """Say whether the module multiplies by weights, or is the counterpart of one that does."""
    return isinstance(module, _WEIGHTED)


def is_normalisation(target: Target) -> bool:
    """Recognise a normalisation by its name, as many libraries have their own. A block that has a layer is not one."""
    if isinstance(target, nn.Module) and any(map(is_weighted, target.modules())):
        return False
    return any("norm" in name for name in _names(target))


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", "function")


def _names(target: Target) -> set[str]:
    names = [target] if isinstance(target, str) else [kind.__name__ for kind in type(target).__mro__]
    return {re.sub(r"_|\dd$", "", name).lower() for name in names}


def _is_passthrough(target: Target) -> bool:
    return any(name in _PASSTHROUGH or "pool" in name or "drop" in name for name in _names(target))


def _runs_as_a_whole(module: nn.Module) -> bool:
    if is_weighted(module) or is_normalisation(module) or isinstance(module, torch.jit.ScriptModule):
        return True
    return not any(True for _ in module.children())


def _defined(module: nn.Module) -> list[Step]:
    """Return the modules in order of definition, as if each were the input of the next one."""

    def parts(module: nn.Module) -> Iterator[Target]:
        for child in module.children():
            yield from [child] if _runs_as_a_whole(child) else parts(child)

    targets = [*parts(module), "output"]
    return [Step(target, frozenset({i}), frozenset({i + 1})) for i, target in enumerate(targets)]


class _Tracer(fx.Tracer):
    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return super().call_module(m, m.forward, args, kwargs)  # without hooks, which may keep the proxies

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _runs_as_a_whole(m)


def _traced(module: nn.Module) -> list[Step] | None:
    """Trace the module; None where torch.fx cannot. All arguments except the first take their defaults."""
    arguments = list(inspect.signature(type(module).forward).parameters.values())[2:]
    defaults = {a.name: a.default for a in arguments if a.default is not a.empty}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(module, defaults)
    except Exception:  # tracing runs the network's own code on proxies, which may raise anything
        return None

    def number(node: fx.Node) -> int:
        return id(attrgetter(str(node.target))(module) if node.op == "get_attr" else node)

    steps = []
    for node in graph.nodes:
        if node.op not in ("placeholder", "get_attr"):
            target = module.get_submodule(node.target) if node.op == "call_module" else _name(node.target)
            steps.append(Step(target, frozenset(map(number, node.all_input_nodes)), frozenset({id(node)})))
    return steps


def _tensors(value: Any) -> list[Tensor]:
    leaves: list[Any] = []
    map_aggregate(value, leaves.append)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


class _Recorder(TorchFunctionMode):
    """Record the modules that run as a whole and the functions that are called between them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._depth = 0  # how many modules that run as a whole are running
        self._tensors: list[Tensor] = []  # kept alive, since the id of a dead tensor may be given to another one

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.record(_name(func), (args, kwargs), result)
        return result

    def record(self, target: Target, given: Any, result: Any) -> None:
        inputs, outputs = _tensors(given), _tensors(result)
        if outputs and not self._depth:
            self._tensors += inputs + outputs
            self.steps.append(Step(target, frozenset(map(id, inputs)), frozenset(map(id, outputs))))

    def before(self, module: nn.Module, args: Any) -> None:
        self._depth += 1

    def after(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._depth -= 1
        self.record(module, (args, kwargs), result)


def _recorded(module: nn.Module, example_input: Any) -> list[Step]:
    recorder = _Recorder()
    for part in module.modules():
        if _runs_as_a_whole(part) and not isinstance(part, torch.jit.ScriptModule):  # a scripted module takes no hooks
            part.register_forward_pre_hook(recorder.before)
            part.register_forward_hook(recorder.after, with_kwargs=True)
    args: Iterable[Any] = example_input if isinstance(example_input, tuple | list) else [example_input]
    try:
        with recorder:
            result = module(**example_input) if isinstance(example_input, Mapping) else module(*args)
            recorder.record("output", result, result)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{type(module).__name__} does not run on example_input: {reason}") from error
    return recorder.steps


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Run the block in evaluation mode without gradients; restore attributes, hooks, buffers and random state."""
    parts = list(module.modules())
    flags = [part.training for part in parts]
    attributes = [(vars(part), dict(vars(part))) for part in parts]
    values = [value for _, before in attributes for value in before.values()]
    containers = [(value, copy.copy(value)) for value in values if type(value) in (dict, OrderedDict, list, set)]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers() if not is_lazy(buffer)]
    devices = {t.device for t in (*module.parameters(), *module.buffers()) if t.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for part in parts:
                part.training = False
            yield
    finally:
        for now, before in (*attributes, *containers):
            now.clear()
            now.extend(before) if isinstance(now, list) else now.update(before)
        for part, flag in zip(parts, flags, strict=True):
            part.training = flag
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
