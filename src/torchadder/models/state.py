"""State dicts: the tensors of a model for a file, and a model from the tensors of one, once they fit it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchadder.errors import UserError
from torchadder.models.registry import Model, create_model

SHOWN = 8  # names of one kind in a message; the rest is counted


@dataclass(frozen=True)
class Difference:
    """What is wrong with the tensors of a file for a model; empty (false) where they fit. Its text is one line."""

    missing: list[str]
    unexpected: list[str]
    wrong: list[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)

    def __str__(self) -> str:
        parts = [
            f"missing {shortened(self.missing)}" if self.missing else "",
            f"unexpected {shortened(self.unexpected)}" if self.unexpected else "",
            shortened(self.wrong, "; ") if self.wrong else "",
        ]
        return "; ".join(part for part in parts if part)


def difference(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Difference:
    """Compare names, shapes and kinds of dtype; ``wanted`` may be on the meta device."""
    return Difference(
        [name for name in wanted if name not in tensors],
        [name if name.isprintable() else repr(name) for name in tensors if name not in wanted],
        [
            f"{name} {problem}"
            for name, tensor in wanted.items()
            if name in tensors and (problem := _problem(tensors[name], tensor))
        ],
    )


def shortened(names: Iterable[str], separator: str = ", ") -> str:
    """The first names in one line, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more


def blueprint(**config: Any) -> Model:
    """create_model on the meta device: names, shapes and classes, no memory and no random numbers."""
    with torch.device("meta"), _NoInit():
        return create_model(**config)


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: object) -> Model:
    """The model that ``config`` describes, with ``tensors`` as its state, in evaluation mode on the CPU.

    Memory is taken only after every name and shape has been found to fit. Raises UserError, which names
    ``source``, where ``config`` is none of create_model's and where the tensors do not fit.
    """
    try:
        model = blueprint(**config)
    except Exception as error:  # values of any type may stand in a file
        raise UserError(f"{source}: its configuration describes no model of ours ({first_line(error)})") from error
    problems = difference(model.state_dict(), tensors)
    if problems:
        raise UserError(f"{source} does not fit {model.config['name']}: {problems}")
    model.to_empty(device="cpu")
    model.load_state_dict(tensors)
    return model.eval()


def read_pickle(file: Path) -> Any:
    """What torch.save wrote to ``file``, tensors on the CPU; weights_only, so that no code in it is ever run.

    Raises UserError where the file is damaged or holds anything but plain values and tensors.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle fails in every way there is
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file} holds pickled code ({code[1]}), which was not run; a checkpoint is a state dict of tensors"
            ) from error
        raise UserError(f"{file} is damaged and cannot be read ({first_line(error)})") from error


def checked_tensors(content: Any, source: object) -> dict[str, Tensor]:
    """``content`` itself where it maps names to tensors; UserError that says what else it is."""
    if not isinstance(content, Mapping):
        raise UserError(f"{source} holds no state dict, but a value of type {type(content).__name__}")
    if not content:
        raise UserError(f"{source} holds an empty state dict")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{source} holds no state dict: {name!r} is of type {type(tensor).__name__}")
    return dict(content)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of ``model`` as a safetensors file takes it: contiguous copies on the CPU, none shares memory."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _NoInit(TorchFunctionMode):
    """Skips torch.nn.init: on the meta device, random numbers would import torch's compiler, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))


def _problem(tensor: Tensor, wanted: Tensor) -> str | None:
    if tensor.shape != wanted.shape:
        return f"has shape {tuple(tensor.shape)}, expected {tuple(wanted.shape)}"
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return f"is no plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})"
    if tensor.is_floating_point() != wanted.is_floating_point():
        return f"is {tensor.dtype}, expected {wanted.dtype}"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "repeats its elements instead of holding them"  # a small file that would ask for any memory
    return None
