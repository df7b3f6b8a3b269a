"""Read and write checkpoints: the weights of a model and the arguments that build it again.

A checkpoint is a run directory, a directory or file of safetensors, or a pickled state dict, in the names of this
library or in those of the files that the AdderNet authors published: pickles, often of a DataParallel
(``module.layer1.0.conv1.adder``), in which the weight of an adder layer is called ``adder``.

Files may come from strangers: pickles are read with weights_only=True, and memory is taken only after every name,
shape and dtype has been compared with those of the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchadder import files
from torchadder.errors import UserError
from torchadder.models.registry import Model, create_model, list_models
from torchadder.nn import Adder

BEST, LAST, CONFIG = "best.safetensors", "last.pt", "config.json"
WEIGHTS = "model.safetensors"  # with CONFIG beside it: what save_pretrained writes
PICKLES = (".pt", ".pth")
_KINDS = f"a run directory (or its {BEST} or {LAST}), a directory with {WEIGHTS}, a safetensors file or a .pth"
_DATA_PARALLEL = "module."  # the prefix that nn.DataParallel puts before every name
_NAMES_SHOWN = 8  # tensors of one kind that a message names; it counts the others
_PROBES = {1009: "num_classes", 1013: "in_chans"}  # primes that no tensor of a model has as a size for another reason


@dataclass(frozen=True)
class Checkpoint:
    """Describe the model of a checkpoint and its training.

    ``model``: the arguments of create_model. ``accuracy``: on the test split, in percent. The other fields are None
    where no training run of this library wrote the file.
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
    """Write best.safetensors, with the configuration in its metadata, and config.json into ``folder``.

    Each file appears whole or not at all. Raises OSError where it cannot be written.
    """
    about = asdict(Checkpoint(model.config, dataset, epoch, accuracy))
    files.write_bytes(folder / BEST, save(cpu_state(model), metadata={"torchadder": json.dumps(about)}))
    files.write_bytes(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def load_checkpoint(path: str | Path, op: str = "adder") -> Model:
    """Load the trained model from a checkpoint of any of these kinds:

    - a run directory (its best.safetensors) or its last.pt;
    - a directory with model.safetensors and config.json, as ``save_pretrained`` writes it;
    - a safetensors file, with its configuration in its metadata or in config.json beside it, or without any;
    - a .pth or .pt with a state dict, in the names of this library or in the published ones.

    A file without a configuration is recognised by the names and shapes of its tensors. ``op`` is then the operator
    of the network, unless the names are the published ones (``conv1.adder``), which are those of an AdderNet.

    Returns a float32 Model in evaluation mode on the CPU; create_model(**model.config) builds the same network.

    Raises UserError for a path that is none of these, a damaged file, and tensors that fit no model: the message
    lists missing and unexpected names and wrong shapes. Code in a pickle is never run.
    """
    return read_checkpoint(path, op)[0]


def read_checkpoint(path: str | Path, op: str = "adder") -> tuple[Model, Checkpoint]:
    """Load a model as load_checkpoint does, and return it with the description that the checkpoint holds."""
    file = _find_file(Path(path))
    about: Mapping[str, Any] | None = None
    if file.suffix == ".safetensors":
        about, tensors = _read_safetensors(file)
    elif file.name == LAST:
        about, tensors = _read_last_model(file)
    elif file.suffix in PICKLES:
        tensors = _read_state_dict(file)
    else:
        raise UserError(f"cannot read {file}: expected {_KINDS}")
    if about is None:
        config, tensors = _recognise(tensors, op, file)
        return _build(config, tensors, file), Checkpoint(config)
    try:
        checkpoint = Checkpoint(
            **{field.name: about[field.name] for field in fields(Checkpoint) if field.name in about}
        )
    except TypeError as error:
        raise UserError(f"{file}: its configuration describes no known model ({error})") from error
    return _build(checkpoint.model, tensors, file), checkpoint


def read_last(file: Path) -> dict[str, Any]:
    """Return the training state in a last.pt, tensors on the CPU. Raises UserError where the file is damaged."""
    state = _read_pickle(file)
    if not isinstance(state, dict):
        raise UserError(f"{file} is damaged: it holds a {type(state).__name__}, not a training state")
    return state


# states and models


def cpu_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of ``model`` as safetensors takes it: contiguous copies on the CPU that share no memory."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def create_on_meta(**config: Any) -> Model:
    """Build a model on the meta device: names, shapes and classes, without memory or random numbers."""
    with torch.device("meta"), _SkipInit():
        return create_model(**config)


class _SkipInit(TorchFunctionMode):
    """Skip torch.nn.init: a random number on the meta device imports torch's compiler, which takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Difference:
    """List why tensors do not fit a model; empty, and so false, where they fit. ``str()`` is one line."""

    missing: list[str]
    unexpected: list[str]
    wrong: list[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.wrong)

    def __str__(self) -> str:
        parts = [
            f"missing {_shortened(self.missing)}" if self.missing else "",
            f"unexpected {_shortened(self.unexpected)}" if self.unexpected else "",
            _shortened(self.wrong, "; ") if self.wrong else "",
        ]
        return "; ".join(part for part in parts if part)


def compare_states(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Difference:
    """Compare names, shapes and kinds of dtype; ``expected`` may be on the meta device."""
    return Difference(
        [name for name in expected if name not in tensors],
        [name if name.isprintable() else repr(name) for name in tensors if name not in expected],
        [
            f"{name} {problem}"
            for name, tensor in expected.items()
            if name in tensors and (problem := _problem(tensors[name], tensor))
        ],
    )


def _problem(tensor: Tensor, expected: Tensor) -> str | None:
    if tensor.shape != expected.shape:
        return f"has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return f"is no plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})"
    if tensor.is_floating_point() != expected.is_floating_point():
        return f"is {tensor.dtype}, expected {expected.dtype}"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "repeats its elements instead of holding them"  # a small file could ask for any amount of memory
    return None


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: object) -> Model:
    """Build the model of ``config`` with ``tensors`` as its state, in evaluation mode on the CPU.

    Raises UserError, which names ``source``, where create_model does not take ``config`` and where the tensors do not
    fit the model.
    """
    try:
        model = create_on_meta(**config)
    except Exception as error:  # a file may hold values of any type
        raise UserError(f"{source}: its configuration describes no known model ({first_line(error)})") from error
    if problems := compare_states(model.state_dict(), tensors):
        raise UserError(f"{source} does not fit {model.config['name']}: {problems}")
    model.to_empty(device="cpu")
    model.load_state_dict(tensors)
    return model.eval()


def _recognise(tensors: Mapping[str, Tensor], op: str, source: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Find the model that ``tensors`` fit; return the arguments of create_model, and the tensors by its names.

    Published names of adder weights decide for op "adder"; otherwise ``op`` does, since names and shapes are the same
    for all operators. Raises UserError that names the nearest model and every difference from it.
    """
    if published := any(name.endswith(".adder") for name in tensors):
        op = "adder"
    candidates = []
    for name in list_models():
        probe = create_on_meta(name=name, **{argument: size for size, argument in _PROBES.items()})
        names = _published_names(probe) if published else {key: key for key in probe.state_dict()}
        model = create_on_meta(name=name, op=op, **_read_arguments(probe, names, tensors))
        problems = compare_states({names[key]: tensor for key, tensor in model.state_dict().items()}, tensors)
        if not problems:
            return model.config, {key: tensors[file_key] for key, file_key in names.items()}
        candidates.append((len(problems), name, problems))
    _, name, problems = min(candidates, key=lambda candidate: candidate[0])
    raise UserError(f"{source} fits no known model; the nearest is {name}: {problems}")


def _read_arguments(probe: Model, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return num_classes and in_chans of ``tensors``: their sizes along the axes where ``probe`` has its primes."""
    return {
        _PROBES[size]: found.shape[axis]
        for key, tensor in probe.state_dict().items()
        for axis, size in enumerate(tensor.shape)
        if size in _PROBES and (found := tensors.get(names[key])) is not None
        if found.dim() > axis and found.shape[axis] > 0
    }


def _published_names(model: Model) -> dict[str, str]:
    """Map the names of the tensors of ``model`` to the published ones."""
    adder = {f"{name}.weight": f"{name}.adder" for name, m in model.named_modules() if isinstance(m, Adder)}
    return {key: adder.get(key, key) for key in model.state_dict()}


# files


def _find_file(path: Path) -> Path:
    """Return ``path`` itself, or the checkpoint file in it where it is a directory."""
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"no checkpoint at {path}; expected {_KINDS}")
        return path
    for name in (BEST, WEIGHTS):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds no {BEST} or {WEIGHTS}; expected {_KINDS}")


def _read_safetensors(file: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Return configuration (from the metadata, else from config.json beside the file, else None) and tensors."""
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
        about = json.loads(metadata.get("torchadder") or beside.read_text())
    except (OSError, ValueError):
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{file} does not say which model it holds, in its metadata or {beside}")
    return about, tensors


def _read_last_model(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = read_last(file)
    try:
        about, tensors = state["checkpoint"], state["model"]
    except KeyError as error:
        raise UserError(f"{file} is no training state of this library: it lacks {error}") from error
    if not isinstance(about, dict):
        raise UserError(f"{file} does not say which model it holds")
    return about, _check_tensors(tensors, file)


def _read_state_dict(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a pickled state dict, bare or under "state_dict", without the prefix of DataParallel."""
    content = _read_pickle(file)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = _check_tensors(content, file)
    if all(name.startswith(_DATA_PARALLEL) for name in tensors):
        return {name.removeprefix(_DATA_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def _read_pickle(file: Path) -> Any:
    """Return what torch.save wrote to ``file``, tensors on the CPU; weights_only, so that no code in it is run.

    Raises UserError where the file is damaged or holds anything but plain values and tensors.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip or pickle raises errors of many types
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file} holds pickled code ({code[1]}), which was not run; a checkpoint is a state dict of tensors"
            ) from error
        raise UserError(f"{file} is damaged and cannot be read ({first_line(error)})") from error


def _check_tensors(content: Any, source: object) -> dict[str, Tensor]:
    """Return ``content`` where it maps names to tensors; else raise a UserError that says what it is."""
    if not isinstance(content, Mapping):
        raise UserError(f"{source} holds no state dict, but a value of type {type(content).__name__}")
    if not content:
        raise UserError(f"{source} holds an empty state dict")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{source} holds no state dict: {name!r} is of type {type(tensor).__name__}")
    return dict(content)


# messages


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shortened(names: Iterable[str], separator: str = ", ") -> str:
    """Join the first names in one line, and count the others."""
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return separator.join(names[:_NAMES_SHOWN]) + more
