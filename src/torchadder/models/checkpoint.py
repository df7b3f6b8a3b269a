"""Checkpoints: a model's weights with what is needed to build it again, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from torchadder import atomic
from torchadder.errors import UserError
from torchadder.models.registry import Model, create_model

BEST, LAST, CONFIG = "best.safetensors", "last.pt", "config.json"
_KINDS = "a run directory, its best.safetensors or its last.pt"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself. ``model``: the arguments of create_model; accuracy in percent."""

    model: dict[str, Any]
    dataset: str
    epoch: int
    accuracy: float


def save_checkpoint(folder: Path, model: Model, *, dataset: str, epoch: int, accuracy: float) -> None:
    """Write ``folder``/best.safetensors, with the configuration in its metadata, and config.json for readers.

    Each file appears whole or not at all. Raises OSError where the disk refuses.
    """
    about = asdict(Checkpoint(model.config, dataset, epoch, accuracy))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    atomic.write_bytes(folder / BEST, save(tensors, metadata={"torchadder": json.dumps(about)}))
    atomic.write_bytes(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def load_checkpoint(path: str | Path, op: str = "adder") -> Model:
    """The trained model of a run directory (its best.safetensors), a safetensors file or a last.pt.

    Returns a float32 Model in evaluation mode on the CPU; create_model(**model.config) builds its like.
    ``op`` serves files that do not name their operator; ours do, and keep it.

    Raises UserError for a path that is none of these, a damaged file, and tensors that do not fit the model:
    every missing or unexpected name and every wrong shape is listed. Pickles are read with weights_only=True.
    """
    return read_checkpoint(path, op)[0]


def read_checkpoint(path: str | Path, op: str = "adder") -> tuple[Model, Checkpoint]:
    """load_checkpoint, and what the checkpoint says of itself."""
    file = Path(path)
    if file.is_dir():
        if not (file / BEST).is_file():
            raise UserError(f"{file} holds no {BEST}; expected {_KINDS}")
        file = file / BEST
    if not file.is_file():
        raise UserError(f"no checkpoint at {file}; expected {_KINDS}")
    if file.suffix == ".safetensors":
        about, tensors = _read_safetensors(file)
    elif file.name == LAST:
        about, tensors = _read_last(file)
    else:
        raise UserError(f"cannot read {file}: expected {_KINDS}")
    try:
        checkpoint = Checkpoint(**about)
        model = create_model(**checkpoint.model)
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{file}: its configuration describes no model of ours ({error})") from error
    _load_tensors(model, tensors, file)
    return model.eval(), checkpoint


def read_last(file: Path) -> dict[str, Any]:
    """The training state in a last.pt, tensors on the CPU. Raises UserError where it is damaged."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle fails in every way there is
        raise UserError(f"{file} is damaged and cannot be read ({_first_line(error)})") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} is damaged: it holds a {type(state).__name__}, not a training state")
    return state


def _read_last(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = read_last(file)
    try:
        return state["checkpoint"], state["model"]
    except KeyError as error:
        raise UserError(f"{file} is no training state of ours: it lacks {error}") from error


def _read_safetensors(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged and cannot be read ({_first_line(error)})") from error
    beside = file.with_name(CONFIG)
    try:
        text = metadata.get("torchadder") or beside.read_text()
        about = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} does not say which model it holds, in its metadata or {beside}") from error
    if not isinstance(about, dict):
        raise UserError(f"{file} does not say which model it holds, in its metadata or {beside}")
    return about, tensors


def _load_tensors(model: Model, tensors: dict[str, Tensor], file: Path) -> None:
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise UserError(f"{file} does not fit {model.config['name']}: {'; '.join(problems)}")
    model.load_state_dict(tensors)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
