"""Operation counts: multiplications, additions and XNORs of a network, counted while it runs on one image.

The convention, per image, in inference:

    convolution, linear, matrix product    1 multiplication and 1 addition per multiply-accumulate
    adder layer, |x - w| accumulated       2 additions per element (subtract, accumulate), 0 multiplications
    padded positions                       counted as any other
    bias, batch normalisation              not counted: in inference they fold into the layer before them. The
                                           paper leaves them out too, as negligible.
    activation, pooling, residual sum      not counted, as in the paper

Counted is what runs, not what the modules are called: a subclass, a functional call and attention count like
the layers they amount to. What runs or holds parameters and has no rule here is named in the result, never
silently zero. The formulas of products are torch.utils.flop_counter's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..errors import UserError

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_FREE_MODULES = (*_NORMALISATIONS, nn.PReLU, nn.Embedding)

# Free by the convention, beside views and element-wise operators: memory, normalisation, pooling, reduction.
_FREE_OPS = frozenset(
    """
    empty_like zeros_like ones_like full_like _unsafe_view constant_pad_nd reflection_pad1d reflection_pad2d
    replication_pad1d replication_pad2d cat stack index index_select gather embedding im2col roll flip
    native_batch_norm _native_batch_norm_legit_no_training _batch_norm_no_update cudnn_batch_norm
    native_group_norm native_layer_norm _fused_rms_norm _softmax _log_softmax
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d mean sum amax amin max min argmax any all
    upsample_nearest2d upsample_bilinear2d _local_scalar_dense
    """.split()  # noqa: SIM905  (as a list of strings: fifty lines)
)

# The published #Mul of the CNN, by network and input. The counts round and partly include other layers:
# ResNet-20 has exactly 40.81M; LeNet-5's 435K is what 416,520 products and one operation for each bias, ReLU
# and pooled element of a plain LeNet-5 come to (435,850).
_PAPER: dict[tuple[str, tuple[int, ...]], int] = {
    ("lenet5bn", (1, 32, 32)): 435_000,
    ("resnet20", (3, 32, 32)): 41_170_000,
    ("resnet32", (3, 32, 32)): 69_120_000,
}


@dataclass
class Row:
    """A module that computes or holds parameters.

    `free`: costs nothing by the convention. `unknown`: what of it is not counted, and why.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None = None  # of one image; None where the module gave no tensor or never ran
    parameters: int = 0
    mul: int = 0
    add: int = 0
    xnor: int = 0
    free: bool = False
    unknown: list[str] = field(default_factory=list)


@dataclass
class Summary:
    """Rows in the order of definition, and their totals. `str()` is a table, `to_dict()` plain values."""

    model: str
    op: str | None
    input_size: tuple[int, ...]
    rows: list[Row]
    paper: dict[str, int] | None = None

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
    def unknown(self) -> list[Row]:
        """The rows that the totals leave out, wholly or in part: they make the totals lower bounds."""
        return [row for row in self.rows if row.unknown]

    def to_dict(self) -> dict[str, Any]:
        total = {"mul": self.mul, "add": self.add, "xnor": self.xnor, "parameters": self.parameters}
        return {
            "model": self.model,
            "op": self.op,
            "input_size": list(self.input_size),
            "exact": not self.unknown,
            "total": total,
            "paper": self.paper,
            "layers": [{**vars(row), "output": None if row.output is None else list(row.output)} for row in self.rows],
        }

    @property
    def title(self) -> str:
        size = "x".join(map(str, self.input_size))
        return " · ".join([self.model, *([self.op] if self.op else []), f"input {size}"])

    def cells(self) -> list[list[str]]:
        """The table as text: header, one line a layer, free modules by kind, total, the paper's total."""
        lines = [["layer", "type", "output", "parameters", "#Mul", "#Add", "#XNOR"]]
        for row in self.rows:
            if not row.free:
                size = "" if row.output is None else "x".join(map(str, row.output))
                operations = [f"{n:,}" for n in (row.mul, row.add, row.xnor)]
                if row.unknown:
                    operations = [n if n != "0" else "?" for n in operations]
                lines.append([row.name, row.kind, size, f"{row.parameters:,}", *operations])
        free = [row for row in self.rows if row.free]
        for kind, count in Counter(row.kind for row in free).items():
            parameters = sum(row.parameters for row in free if row.kind == kind)
            lines.append([f"{count} not counted", kind, "", f"{parameters:,}", "", "", ""])
        at_least = ">= " if self.unknown else ""
        totals = [f"{at_least}{n:,}" for n in (self.mul, self.add, self.xnor)]
        lines.append(["total", "", "", f"{self.parameters:,}", *totals])
        if self.paper:
            published = [_rounded(self.paper[key]) for key in ("mul", "add", "xnor")]
            lines.append(["paper", "", "", "", *published])
        return lines

    def notes(self) -> list[str]:
        """One line for each thing that the totals leave out, and one on the paper's where they differ."""
        notes = [f"not counted: {row.name} ({row.kind}): {why}" for row in self.unknown for why in row.unknown]
        if self.paper and (self.paper["mul"], self.paper["add"]) != (self.mul, self.add):
            notes.append("paper: as published; its counts round and partly include other layers")
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


def summary(model: nn.Module, input_size: Sequence[int] | None = None) -> Summary:
    """Count the operations and parameters of ``model``, by layer and in total, for one input.

    Args:
        model: any nn.Module. It runs once, without gradients, in evaluation mode, on one input of zeros, in
            its own dtype and on its own device; parameters, buffers and training flags are left as they were.
        input_size: shape of one input without the batch, e.g. (3, 32, 32). None: ``model.input_size``, which
            the models of ``create_model`` have.

    Raises UserError for a size that is not made of positive integers, or that the model does not run on.
    """
    size = tuple(getattr(model, "input_size", ()) if input_size is None else input_size)
    if not size or not all(isinstance(n, int) and n > 0 for n in size):
        raise UserError(f"input_size must be the shape of one input, e.g. (3, 32, 32), got {input_size}")
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    counter = _Counter(model)
    with _evaluating(model), counter.watching(), torch.no_grad():
        x = torch.zeros(1, *size, dtype=like.dtype, device=like.device)
        try:
            with counter:
                model(x)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            shape = "x".join(map(str, size))
            reason = str(error).partition("\n")[0]
            name = type(model).__name__
            raise UserError(f"{name} does not run on an input of {shape}: {reason}") from error
    config = getattr(model, "config", None)
    config = config if isinstance(config, dict) and {"name", "op", "num_classes"} <= config.keys() else {}
    return Summary(
        model=config.get("name", type(model).__name__),
        op=config.get("op"),
        input_size=size,
        rows=counter.finished_rows(),
        paper=_paper(config, size),
    )


class _Counter(TorchDispatchMode):
    """Sees every operator below autograd and books it on the innermost module that is running."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.rows: dict[nn.Module, Row] = {}
        self.running: list[nn.Module] = [model]
        self.computed: set[nn.Module] = set()  # a counted operator ran in it, or in a module that it called
        self.ran: set[nn.Module] = set()
        seen: set[Tensor] = set()
        for name, module in model.named_modules():
            own = [p for p in module.parameters(recurse=False) if p not in seen]  # tied weights count once
            seen.update(own)
            row = Row(name or "(model)", type(module).__name__, parameters=sum(p.numel() for p in own))
            row.free = isinstance(module, _FREE_MODULES)
            self.rows[module] = row

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on every module that tell which one is running."""

        def enter(module: nn.Module, args: Any) -> None:
            self.running.append(module)
            self.ran.add(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.running.pop()
            if isinstance(output, Tensor):
                self.rows[module].output = tuple(output.shape[1:])

        handles: list[Any] = []
        for module in self.rows:
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        row = self.rows[self.running[-1]]
        packet = func.overloadpacket
        if packet in flop_registry:
            products = flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
            row.mul += products
            row.add += products
            self.computed.update(self.running)
        elif func is torch.ops.torchadder.adder_conv2d.default:
            weight = args[1]
            row.add += 2 * out.numel() * prod(weight.shape[1:])
            self.computed.update(self.running)
        elif not _is_free(func, args):
            why = f"no rule for {packet}"
            if why not in row.unknown:
                row.unknown.append(why)
        return out

    def finished_rows(self) -> list[Row]:
        """The rows worth printing, with a reason on each that holds parameters but was not counted."""
        for module, row in self.rows.items():
            if row.parameters and not row.free and not row.unknown:
                if module not in self.ran:
                    row.unknown.append("holds parameters and did not run")
                elif module not in self.computed:
                    row.unknown.append("holds parameters and ran no operator with a rule")
        return [row for row in self.rows.values() if row.parameters or row.mul or row.add or row.unknown]


def _is_free(func: Any, args: Any) -> bool:
    """Views, element-wise operators and what makes tensors from none: costless by the convention."""
    return (
        func.is_view
        or torch.Tag.pointwise in func.tags
        or func.overloadpacket.__name__ in _FREE_OPS
        or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(args))
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _paper(config: dict[str, Any], size: tuple[int, ...]) -> dict[str, int] | None:
    """The published counts, where the paper has them for this network, operator and task.

    An AdderNet's #Add is there twice the CNN's #Mul, as if its first and last layer were adder layers too.
    """
    products = _PAPER.get((config.get("name", ""), size))
    if products is None or config["num_classes"] != 10:
        return None
    if config["op"] == "adder":
        return {"mul": 0, "add": 2 * products, "xnor": 0}
    return {"mul": products, "add": products, "xnor": 0}


def _rounded(count: int) -> str:
    """As the paper prints it: 0, 435K, 41.17M."""
    if count < 1_000:
        return str(count)
    return f"{count / 1_000:.0f}K" if count < 1_000_000 else f"{count / 1_000_000:.2f}M"
