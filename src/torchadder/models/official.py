"""The layout in which the AdderNet authors published their weights, and which model a set of tensors is.

Their files are pickled state dicts, often of a DataParallel (``module.layer1.0.conv1.adder``); the filters of an
adder layer are called ``adder`` where torch says ``weight``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from torchadder.errors import UserError
from torchadder.models.registry import Model, list_models
from torchadder.models.state import blueprint, checked_tensors, difference, read_pickle
from torchadder.nn import Adder

PREFIX = "module."
_MARKS = {1009: "num_classes", 1013: "in_chans"}  # sizes that no tensor of a model has for another reason


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickled state dict, bare or under "state_dict", without the prefix of DataParallel.

    Raises UserError as read_pickle does, and where it is no table of tensors.
    """
    content = read_pickle(file)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = checked_tensors(content, file)
    if all(name.startswith(PREFIX) for name in tensors):
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def recognise(tensors: Mapping[str, Tensor], op: str, source: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Which model the tensors are: the arguments of create_model, and the tensors by its names.

    Published names of adder filters say that ``op`` is "adder"; without them it is the caller's word, since the
    names and shapes are the same for all. Raises UserError that names the nearest model and every difference.
    """
    if published := any(name.endswith(".adder") for name in tensors):
        op = "adder"
    candidates = []
    for name in list_models():
        marked = blueprint(name=name, **{what: size for size, what in _MARKS.items()})
        names = _published_names(marked) if published else {key: key for key in marked.state_dict()}
        model = blueprint(name=name, op=op, **_counts(marked, names, tensors))
        problems = difference({names[key]: tensor for key, tensor in model.state_dict().items()}, tensors)
        if not problems:
            return model.config, {key: tensors[file_key] for key, file_key in names.items()}
        candidates.append((len(problems), name, problems))
    _, name, problems = min(candidates, key=lambda candidate: candidate[0])
    raise UserError(f"{source} fits no model of ours; the nearest is {name}: {problems}")


def _counts(marked: Model, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """num_classes and in_chans of the file's tensors, read where the sizes of ``marked`` show them."""
    return {
        _MARKS[size]: found.shape[axis]
        for key, tensor in marked.state_dict().items()
        for axis, size in enumerate(tensor.shape)
        if size in _MARKS and (found := tensors.get(names[key])) is not None
        if found.dim() > axis and found.shape[axis] > 0
    }


def _published_names(model: Model) -> dict[str, str]:
    """Our name of each tensor -> the published one."""
    adder = {f"{name}.weight": f"{name}.adder" for name, m in model.named_modules() if isinstance(m, Adder)}
    return {key: adder.get(key, key) for key in model.state_dict()}
