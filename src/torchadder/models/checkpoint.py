"""Checkpoints: a model's weights with what is needed to build it again, and every kind of file that holds such."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from torchadder import atomic
from torchadder.errors import UserError
from torchadder.models import official
from torchadder.models.registry import Model
from torchadder.models.state import build, checked_tensors, first_line, read_pickle, tensors_of

BEST, LAST, CONFIG = "best.safetensors", "last.pt", "config.json"
WEIGHTS = "model.safetensors"  # with CONFIG beside it: what save_pretrained writes
PICKLES = (".pt", ".pth")
_KINDS = f"a run directory (or its {BEST} or {LAST}), a directory with {WEIGHTS}, a safetensors file or a .pth"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself. ``model``: the arguments of create_model; accuracy in percent.

    Those that no training run of ours wrote know neither data set nor epoch.
    """

    model: dict[str, Any]
    dataset: str | None = None
    epoch: int | None = None
    accuracy: float | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("dataset", str), ("epoch", int), ("accuracy", (int, float))):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                raise TypeError(f"{name} is {value!r}")


def save_checkpoint(folder: Path, model: Model, *, dataset: str, epoch: int, accuracy: float) -> None:
    """Write ``folder``/best.safetensors, with the configuration in its metadata, and config.json for readers.

    Each file appears whole or not at all. Raises OSError where the disk refuses.
    """
    about = asdict(Checkpoint(model.config, dataset, epoch, accuracy))
    atomic.write_bytes(folder / BEST, save(tensors_of(model), metadata={"torchadder": json.dumps(about)}))
    atomic.write_bytes(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def load_checkpoint(path: str | Path, op: str = "adder") -> Model:
    """The trained model in a checkpoint of any of these kinds:

    - a run directory (its best.safetensors) or its last.pt;
    - a directory with model.safetensors and config.json, as ``save_pretrained`` writes it;
    - a safetensors file, with its configuration in its metadata or in config.json beside it, or without any;
    - a .pth or .pt with a state dict, in our names or in those that the AdderNet authors published.

    Files without a configuration are recognised by the names and shapes of their tensors. ``op`` is what they
    compute, where nothing in them says so: a configuration and published names (``conv1.adder``) do.

    Returns a float32 Model in evaluation mode on the CPU; create_model(**model.config) builds its like.

    Raises UserError for a path that is none of these, a damaged file, and tensors that fit no model: missing and
    unexpected names and wrong shapes are listed. Pickles are read with weights_only=True: code is never run.
    """
    return read_checkpoint(path, op)[0]


def read_checkpoint(path: str | Path, op: str = "adder") -> tuple[Model, Checkpoint]:
    """load_checkpoint, and what the checkpoint says of itself."""
    file = _file_of(Path(path))
    about: Mapping[str, Any] | None = None
    if file.suffix == ".safetensors":
        about, tensors = _read_safetensors(file)
    elif file.name == LAST:
        about, tensors = _read_last(file)
    elif file.suffix in PICKLES:
        tensors = official.read_state_dict(file)
    else:
        raise UserError(f"cannot read {file}: expected {_KINDS}")
    if about is None:
        config, tensors = official.recognise(tensors, op, file)
        return build(config, tensors, file), Checkpoint(config)
    try:
        checkpoint = Checkpoint(
            **{field.name: about[field.name] for field in fields(Checkpoint) if field.name in about}
        )
    except TypeError as error:
        raise UserError(f"{file}: its configuration describes no model of ours ({error})") from error
    return build(checkpoint.model, tensors, file), checkpoint


def read_last(file: Path) -> dict[str, Any]:
    """The training state in a last.pt, tensors on the CPU. Raises UserError where it is damaged."""
    state = read_pickle(file)
    if not isinstance(state, dict):
        raise UserError(f"{file} is damaged: it holds a {type(state).__name__}, not a training state")
    return state


def _file_of(path: Path) -> Path:
    """The file that ``path`` stands for: itself, or the one in a directory."""
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"no checkpoint at {path}; expected {_KINDS}")
        return path
    for name in (BEST, WEIGHTS):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds no {BEST} or {WEIGHTS}; expected {_KINDS}")


def _read_last(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = read_last(file)
    try:
        about, tensors = state["checkpoint"], state["model"]
    except KeyError as error:
        raise UserError(f"{file} is no training state of ours: it lacks {error}") from error
    if not isinstance(about, dict):
        raise UserError(f"{file} does not say which model it holds")
    return about, checked_tensors(tensors, file)


def _read_safetensors(file: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Configuration (in the metadata, else in config.json beside the file, else None) and tensors."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged and cannot be read ({first_line(error)})") from error
    beside = file.with_name(CONFIG)
    if "torchadder" not in metadata and not beside.exists():
        return None, tensors
    try:
        text = metadata.get("torchadder") or beside.read_text()
        about = json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} does not say which model it holds, in its metadata or {beside}") from error
    if not isinstance(about, dict):
        raise UserError(f"{file} does not say which model it holds, in its metadata or {beside}")
    return about, tensors
