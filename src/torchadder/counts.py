"""Summarise the operations, parameters and activations of a network by layer, beside the counts of the paper.

flops.py has the convention: what counts as a multiplication, an addition and an XNOR, and what is not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchadder import flops
from torchadder.errors import UserError
from torchadder.flops import Row
from torchadder.nn import Adder, Binary

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
    counter = flops.Counter(model)
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
        given = type(values).__name__ if isinstance(values, Tensor) else values
        raise UserError(
            f"input_size={given} is no shape: expected that of one input, e.g. (3, 32, 32); or give input_data"
        )
    return size


def _call(model: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)


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
