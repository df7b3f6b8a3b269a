"""Count the multiplications, additions and XNORs of a network, layer by layer, while it runs on one input.

The convention, per image, in inference:

    convolution, linear, matrix product    1 multiplication and 1 addition per multiply-accumulate
    adder layer, |x - w| accumulated       2 additions per element (subtract, accumulate), 0 multiplications
    binary layer, XNOR and popcount        1 XNOR and 1 addition (accumulate) per element; the scale of a filter
                                           folds into the normalisation that follows and is not counted
    padded positions                       counted like any other position
    bias, batch normalisation              not counted: in inference they fold into the layer before them. The
                                           paper leaves them out too, as negligible.
    activation, pooling, residual sum,     not counted, as in the paper
    other element-wise work, reduction

#Mul + #Add + #XNOR are therefore the flops of torch.utils.flop_counter.FlopCounterMode, whose formulas this module
uses, with attention counted as the matrix products that it stands for. Activations are the output elements of the
counted operators (Radosavovic et al., "Designing Network Design Spaces", 2020), 4 bytes each in float32. For a layer
that runs twice, operations and activations count twice and parameters once.

It counts the operators that run, whatever the names of the modules: a subclass, a functional call and attention count
like the layers that they are equal to. Where an operator or a module with parameters has no rule, the summary names it
instead of counting 0.

Importing this module registers the library's own operators with FlopCounterMode. It counts 2 flops for each
multiply-accumulate of a convolution, forward and in each gradient. The library's operators count 2 flops in its place,
so that an AdderNet, a binary network and their CNN counterpart have the same number of flops:

    adder_conv           subtract, accumulate
    binary_conv          XNOR, accumulate (popcount)
    adder_conv_grad_*    multiply by dY, accumulate

Work that is done once per element of a tensor is left out, as for a convolution: bias, scale of a binary filter, the
correction -W * sum(dY) of the weight gradient, HardTanh or sign of the difference that dY multiplies. The products
that a gradient operator computes internally count as that operator, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode  # torch documents it under this name ("Extending PyTorch")
from torch.utils.flop_counter import flop_registry, register_flop_formula

from torchadder import ops  # noqa: F401  defines the operators
from torchadder.errors import UserError
from torchadder.nn import Adder, Binary

_ADDER_CONV = torch.ops.torchadder.adder_conv
_BINARY_CONV = torch.ops.torchadder.binary_conv
_GRADIENTS = (torch.ops.torchadder.adder_conv_grad_input, torch.ops.torchadder.adder_conv_grad_weight)

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (
    *_BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
_WEIGHT_MAKERS = (nn.utils.parametrize.ParametrizationList,)  # in inference the weight that they make is constant
_FREE_MODULES = (*_NORMS, *_WEIGHT_MAKERS, nn.PReLU, nn.Embedding)

# Operators that cost nothing by the convention, beside views and those tagged element-wise: memory, padding and
# resizing, normalisation and activation, pooling, reduction. The names lack the underscores of internal and in-place
# operators.
_FREE_OPS = frozenset(
    """
    empty_like zeros_like ones_like full_like new_empty new_zeros new_ones new_full copy to_copy unsafe_view as_strided
    cat stack repeat roll flip tril triu index unsafe_index index_select index_put gather scatter embedding im2col
    pixel_shuffle pixel_unshuffle channel_shuffle constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
    replication_pad1d replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    native_batch_norm native_batch_norm_legit native_batch_norm_legit_no_training batch_norm_no_update cudnn_batch_norm
    native_group_norm native_layer_norm fused_rms_norm weight_norm_interface softmax safe_softmax log_softmax
    hardswish glu prelu_kernel rrelu_with_noise log_sigmoid_forward
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d fractional_max_pool2d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
    mean sum var var_mean std linalg_vector_norm cumsum amax amin max min argmax argmin any all local_scalar_dense
    """.split()  # noqa: SIM905  (as a list of strings: a hundred lines)
)

# The paper's counts (arXiv 1912.13200, section 4). They are rounded and partly include other layers: ResNet-20 has
# exactly 40.81M products; LeNet-5's 435K are 416,520 products and one operation for each bias, ReLU and pooled
# element of a plain LeNet-5 (435,850). The 7.7G has a secondary source; it is twice the exact count, rounded.
_PUBLISHED: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, str]] = {
    # name: input, numbers of classes, #Mul and #Add of the CNN, #Add of the AdderNet
    "lenet5bn": ((1, 32, 32), (10,), "435K", "870K"),
    "vgg_small": ((3, 32, 32), (10, 100), "0.65G", "1.30G"),
    "resnet20": ((3, 32, 32), (10, 100), "41.17M", "82.34M"),
    "resnet32": ((3, 32, 32), (10, 100), "69.12M", "138.24M"),
    "resnet18": ((3, 224, 224), (1000,), "1.8G", "3.6G"),
    "resnet50": ((3, 224, 224), (1000,), "3.9G", "7.7G"),
}
_PUBLISHED_NOTE = (
    "paper: as published; it rounds, partly includes other layers, and takes first and last layer like the rest"
)
_UNITS = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_COUNTS = ("mul", "add", "xnor", "parameters", "activations")


@dataclass
class Row:
    """Hold the counts of one module that computes or holds parameters.

    ``free``: the convention does not count it. ``unknown``: one reason for each operation that has no rule.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None = None  # shape for one example; None without a tensor as output, or without a run
    activations: int = 0  # output elements of its counted operators
    parameters: int = 0
    mul: int = 0
    add: int = 0
    xnor: int = 0
    free: bool = False
    unknown: list[str] = field(default_factory=list)


class Published(NamedTuple):
    """Hold #Mul, #Add and #XNOR as the paper prints them, "41.17M"."""

    mul: str
    add: str
    xnor: str

    def to_dict(self) -> dict[str, int]:
        return {name: _number(text) for name, text in self._asdict().items()}


@dataclass
class Summary:
    """Hold rows in order of definition and their totals. ``str()`` is a table, ``to_dict()`` plain values."""

    model: str
    op: str | None
    input_size: tuple[int, ...] | None  # None where the caller gave the inputs themselves
    rows: list[Row]
    paper: Published | None = None

    @property
    def mul(self) -> int:
        return sum(row.mul for row in self.rows)

    @property
    def add(self) -> int:
        return sum(row.add for row in self.rows)

    @property
    def xnor(self) -> int:
        return sum(row.xnor for row in self.rows)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def activations(self) -> int:
        return sum(row.activations for row in self.rows)

    @property
    def unknown(self) -> list[Row]:
        """Return the rows that the totals leave out, wholly or in part; with them the totals are lower bounds."""
        return [row for row in self.rows if row.unknown]

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "op": self.op,
            "input_size": None if self.input_size is None else list(self.input_size),
            "exact": not self.unknown,
            "total": {name: getattr(self, name) for name in _COUNTS},
            "paper": None if self.paper is None else self.paper.to_dict(),
            "layers": [{**vars(row), "output": None if row.output is None else list(row.output)} for row in self.rows],
        }

    @property
    def title(self) -> str:
        size = None if self.input_size is None else f"input {_times(self.input_size)}"
        return " · ".join(part for part in (self.model, self.op, size) if part)

    def cells(self) -> list[list[str]]:
        """Return the table as text: header, one line a layer, free modules by kind, total, the paper's total.

        The column of activations holds shapes for layers, a number of elements for the total.
        """
        lines = [["layer", "type", "activations", "parameters", "#Mul", "#Add", "#XNOR"]]
        for row in self.rows:
            if not row.free:
                shape = "" if row.output is None else _times(row.output)
                operations = [f"{n:,}" for n in (row.mul, row.add, row.xnor)]
                if row.unknown:
                    operations = [n if n != "0" else "?" for n in operations]
                lines.append([row.name, row.kind, shape, f"{row.parameters:,}", *operations])
        free = [row for row in self.rows if row.free]
        for kind, count in Counter(row.kind for row in free).items():
            parameters = sum(row.parameters for row in free if row.kind == kind)
            lines.append([f"{count} not counted", kind, "", f"{parameters:,}", "", "", ""])
        at_least = ">= " if self.unknown else ""
        activations, *operations = (f"{at_least}{n:,}" for n in (self.activations, self.mul, self.add, self.xnor))
        lines.append(["total", "", activations, f"{self.parameters:,}", *operations])
        if self.paper:
            lines.append(["paper", "", "", "", *self.paper])
        return lines

    def notes(self) -> list[str]:
        """Return one line for each operation that the totals leave out, and one where the paper's totals differ."""
        notes = [f"not counted: {row.name} ({row.kind}): {why}" for row in self.unknown for why in row.unknown]
        if self.paper and self.paper.to_dict() != {"mul": self.mul, "add": self.add, "xnor": self.xnor}:
            notes.append(_PUBLISHED_NOTE)
        return notes

    def __str__(self) -> str:
        cells = self.cells()
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 3 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        return "\n".join([self.title, "", *lines, *self.notes()])


def summary(model: nn.Module, input_size: Sequence[int] | None = None, *, input_data: Any = None) -> Summary:
    """Count the operations, parameters and activations of ``model``, by layer and in total, for one input.

    Args:
        model: any nn.Module. It runs once, without gradients, in evaluation mode, on one input of zeros, in
            its own dtype and on its own device; parameters, buffers and training flags are left as they were.
        input_size: shape of one input without the batch, e.g. (3, 32, 32). None: ``model.input_size``, which
            the models of ``create_model`` have.
        input_data: instead of a size, for models with other inputs: a tensor, a tuple of positional or a dictionary
            of keyword arguments, with a batch of one. The counts are those of this call.

    Raises UserError for a size that is not made of positive integers, and inputs that the model does not run on.
    """
    if input_data is None:
        size = _check_size(getattr(model, "input_size", None) if input_size is None else input_size)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        input_data = torch.zeros(1, *size, dtype=like.dtype, device=like.device)
    elif input_size is None:
        size = None
    else:
        raise UserError(f"input_size={input_size} and input_data exclude each other: give one of them")
    counter = _Counter(model)
    with _evaluation_mode(model), _unfused_attention(), counter.hooks(), torch.no_grad(), counter:
        try:
            _call(model, input_data)
        except Exception as error:  # a forward may raise anything
            given = "input_data" if size is None else "an input of " + _times(size)
            hint = "" if size is None or hasattr(model, "input_size") else "; or give input_data"
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UserError(f"{type(model).__name__} does not run on {given}: {reason}{hint}") from error
    config = getattr(model, "config", None)
    if not (isinstance(config, dict) and {"name", "op", "num_classes"} <= config.keys() and config["op"] == _op(model)):
        config = {}  # no model of the registry, or one that was converted
    return Summary(
        model=config.get("name", type(model).__name__),
        op=config.get("op"),
        input_size=size,
        rows=counter.finished_rows(),
        paper=_published(config, size) if config and size else None,
    )


def _op(model: nn.Module) -> str:
    """Return the operator of a network of the registry, as its layers have it."""
    kinds = {"adder": Adder, "binary": Binary}
    return next((op for op, kind in kinds.items() if any(isinstance(m, kind) for m in model.modules())), "conv")


def _check_size(values: Any) -> tuple[int, ...]:
    size = tuple(values) if isinstance(values, Sequence) else ()
    if not size or not all(isinstance(n, int) and n > 0 for n in size):
        raise UserError(
            f"input_size={values} is no shape: expected that of one input, e.g. (3, 32, 32); or give input_data"
        )
    return size


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)


class _Counter(TorchDispatchMode):
    """Intercept every operator below autograd, and count it for the innermost module that is running."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.rows = {m: Row(name or "(model)", type(m).__name__) for name, m in model.named_modules()}
        self.running: list[nn.Module] = [model]
        self.ran: set[nn.Module] = set()
        self.computed: set[nn.Module] = set()  # a counted operator ran in it, or in a module that it called
        self.parameters = list(model.parameters())
        self.used: set[Tensor] = set()  # parameters that a counted operator took, as they are or as a view

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Keep hooks on every module that record which one is running."""

        def before(module: nn.Module, args: Any) -> None:
            self.running.append(module)
            self.ran.add(module)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()
            if tensors := _tensors(output):
                self.rows[module].output = tuple(tensors[0].shape[1:])

        handles: list[Any] = []
        for module in self.rows:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = func.overloadpacket
        if operator not in flop_registry:
            with self:  # inference mode does not decompose aten.linear and the like by itself
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        row = self.rows[self.running[-1]]
        if operator in flop_registry:
            flops = flop_registry[operator](*args, **kwargs, out_val=out)
            row.mul += 0 if operator in (_ADDER_CONV, _BINARY_CONV) else flops // 2
            row.xnor += flops // 2 if operator is _BINARY_CONV else 0
            row.add += flops if operator is _ADDER_CONV else flops // 2
            row.activations += sum(tensor.numel() for tensor in _tensors(out)[:1])
            self.computed.update(self.running)
            taken = {tensor.untyped_storage() for tensor in _tensors((args, kwargs))}
            self.used.update(p for p in self.parameters if not is_lazy(p) and p.untyped_storage() in taken)
        elif not _is_free(func, args):
            why = f"no rule for {operator}"
            if why not in row.unknown:
                row.unknown.append(why)
        return out

    def finished_rows(self) -> list[Row]:
        """Return the rows to print, with a reason on each that holds parameters but was not counted."""
        seen: set[Tensor] = set()
        for module, row in self.rows.items():
            own = [p for p in module.parameters(recurse=False) if p not in seen]  # tied weights count once
            seen.update(own)
            row.parameters = sum(p.numel() for p in own)
            row.free = isinstance(module, _FREE_MODULES) and module not in self.computed
            counted = module in self.computed or any(p in self.used for p in own)
            if row.parameters and not (row.free or row.unknown or counted):
                ran = "ran no operator with a rule" if module in self.ran else "did not run"
                row.unknown.append(f"holds parameters and {ran}")
        return [row for row in self.rows.values() if row.parameters or row.mul or row.add or row.unknown]


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors in ``value``, which may be nested in sequences and mappings."""
    leaves: list[Any] = []
    map_aggregate(value, leaves.append)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _is_free(func: Any, args: Any) -> bool:
    """Say whether an operator costs nothing: views, element-wise operators, and those that take no tensor."""
    return (
        func.is_view
        or torch.Tag.pointwise in func.tags
        or func.overloadpacket.__name__.strip("_") in _FREE_OPS
        or not _tensors(args)
    )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Run attention as its matrix products: fused kernels differ between devices, and few have a rule."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _forward_flops(input: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _gradient_flops(grad: Sequence[int], input: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(grad) * prod(weight[1:])  # each output position is paired with each element of its filter once


for _formula, _operators in ((_forward_flops, (_ADDER_CONV, _BINARY_CONV)), (_gradient_flops, _GRADIENTS)):
    for _operator in _operators:
        if _operator not in flop_registry:  # as after a reload of this module: the registry takes no operator twice
            register_flop_formula(_operator)(_formula)


def _published(config: dict[str, Any], size: tuple[int, ...]) -> Published | None:
    """Return the paper's counts for a model of this ``config`` on inputs (C, H, W); None where it has no such row.

    The paper counts the first and the last layer like the others, although they are convolutions: an AdderNet has no
    multiplication, and a binary network as many XNORs as the CNN has products. It has no binary network for MNIST.
    """
    name, op = config["name"], config["op"]
    if name not in _PUBLISHED or (name, op) == ("lenet5bn", "binary"):
        return None
    input_size, classes, products, additions = _PUBLISHED[name]
    if size != input_size or config["num_classes"] not in classes:
        return None
    rows = {
        "conv": Published(products, products, "0"),
        "adder": Published("0", additions, "0"),
        "binary": Published("0", products, products),
    }
    return rows.get(op)


def _number(text: str) -> int:
    """Return the number that the paper prints as ``text``: "41.17M" -> 41_170_000."""
    return round(float(text[:-1]) * _UNITS[text[-1]]) if text[-1] in _UNITS else int(text)


def _times(shape: tuple[int, ...]) -> str:
    """Return a shape as text: (3, 32, 32) -> "3x32x32"."""
    return "x".join(map(str, shape))
