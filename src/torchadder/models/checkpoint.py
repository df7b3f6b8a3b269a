"""Read and write checkpoints: the weights of a model and the arguments that build it again.

A checkpoint is a run directory, a directory or file of safetensors, or a pickled state dict, in the names of this
library or in those of the files that the AdderNet authors published, in which the weight of an adder layer is called
``adder`` (``module.layer1.0.conv1.adder``).

Files may come from strangers: memory is taken only after every name, shape and dtype has been compared with those of
the model.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchadder import files
from torchadder.errors import UserError, first_line, shortened
from torchadder.models.pretrained import list_pretrained, pretrained_file
from torchadder.models.registry import Model, create_model, list_models
from torchadder.models.state_dict import find_state, read_file
from torchadder.nn import Adder
from torchadder.nn.adder import SMALL, root_mean_square

BEST, LAST, CONFIG = "best.safetensors", "last.pt", "config.json"
WEIGHTS, PICKLE = "model.safetensors", "pytorch_model.bin"  # with CONFIG beside it: what save_pretrained writes
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
    - a pickled state dict, in the names of this library or in the published ones, bare or in an envelope
      ({"state_dict": ...}, {"model": ...}), also with the prefixes of wrappers (module., _orig_mod., model.);
    - the name of a trained network that the package holds, such as lenet5bn-adder, where no path has it.

    The content decides, not the file's name. A file without a configuration is recognised by the names and shapes of
    its tensors. ``op`` is then the operator of the network, unless the names are the published ones
    (``conv1.adder``), which are those of an AdderNet.

    Returns a float32 Model in evaluation mode on the CPU; create_model(**model.config) builds the same network.

    Warns of tensors that it left out (the counts of thop, further state dicts of an envelope), and of an assumed
    AdderNet whose filters are as small as those of a CNN.

    Raises UserError for a path that is none of these, a damaged file, and tensors that fit no model: the message
    lists missing and unexpected names and wrong shapes. Code in a pickle is never run.
    """
    return read_checkpoint(path, op)[0]


def read_checkpoint(path: str | Path, op: str = "adder") -> tuple[Model, Checkpoint]:
    """Load a model as load_checkpoint does, and return it with the description that the checkpoint holds."""
    file = _find_file(Path(path))
    content, metadata = read_file(file)
    if isinstance(content, dict) and isinstance(content.get("checkpoint"), dict) and "model" in content["checkpoint"]:
        about, content = content["checkpoint"], content.get("model")  # a last.pt
    else:
        about = _read_config(file, metadata)
    tensors, left_out = find_state(content, file)
    if left_out:
        warnings.warn(f"{file}: left out {shortened(left_out)}", stacklevel=3)
    if about is None or "model" not in about:
        config, tensors = _recognise(tensors, op, file, about)
        model, checkpoint = _build(config, tensors, file), Checkpoint(config)
        _warn_of_the_operator(model, file)
        return model, checkpoint
    try:
        checkpoint = Checkpoint(
            **{field.name: about[field.name] for field in fields(Checkpoint) if field.name in about}
        )
    except TypeError as error:
        raise UserError(f"{file}: its configuration describes no known model ({error})") from error
    return _build(checkpoint.model, tensors, file), checkpoint


def read_last(file: Path) -> dict[str, Any]:
    """Return the training state in a last.pt, tensors on the CPU. Raises UserError where the file is damaged."""
    state, _ = read_file(file)
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
            f"missing {shortened(self.missing)}" if self.missing else "",
            f"unexpected {shortened(self.unexpected)}" if self.unexpected else "",
            shortened(self.wrong, "; ") if self.wrong else "",
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
    tensors = {**counters(model), **tensors}
    if problems := compare_states(model.state_dict(), tensors):
        raise UserError(f"{source} does not fit {model.config['name']}: {problems}")
    model.to_empty(device="cpu")
    model.load_state_dict(tensors)
    if lost := [name for name, tensor in model.state_dict().items() if not _is_sound(name, tensor)]:
        warnings.warn(
            f"{source} holds infinite numbers, NaN or negative variances in {shortened(lost)}: the training diverged, "
            "or 16 bits were too few for statistics of raw outputs; save the state dict in float32",
            stacklevel=4,
        )
    return model.eval()


def _is_sound(name: str, tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all()) and not (name.endswith("running_var") and bool((tensor < 0).any()))


def counters(model: nn.Module) -> dict[str, Tensor]:
    """Return zeros for the counters of normalisations, which older and other writers leave out."""
    return {name: torch.tensor(0) for name in model.state_dict() if name.endswith("num_batches_tracked")}


def _recognise(
    tensors: Mapping[str, Tensor], op: str, source: object, foreign: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Find the model that ``tensors`` fit; return the arguments of create_model, and the tensors by its names.

    Published names of adder weights decide for op "adder"; otherwise ``op`` does, since names and shapes are the same
    for all operators. ``foreign``: the configuration of another library, for the message. Raises UserError that names
    the nearest model and every difference from it.
    """
    if published := any(name.endswith(".adder") for name in tensors):
        op = "adder"
    candidates = []
    for name in list_models():
        probe = create_on_meta(name=name, **{argument: size for size, argument in _PROBES.items()})
        names = _published_names(probe) if published else {key: key for key in probe.state_dict()}
        model = create_on_meta(name=name, op=op, **_read_arguments(probe, names, tensors))
        found = {**counters(model), **tensors}
        problems = compare_states({names[key]: tensor for key, tensor in model.state_dict().items()}, found)
        if not problems:
            return model.config, {key: found[file_key] for key, file_key in names.items()}
        candidates.append((len(problems), name, problems))
    _, name, problems = min(candidates, key=lambda candidate: candidate[0])
    own = "; if it is of a network of yours, pass package.module:function, which builds it, with weights=FILE"
    advice = own if not published and foreign is None else _origin(foreign)
    raise UserError(f"{source} fits no known model; the nearest is {name}: {problems}{advice}")


def _origin(foreign: Mapping[str, Any] | None) -> str:
    """Say which library's configuration this is, and what to do with its model."""
    if foreign is None:
        return ""
    kind = next((key for key in ("model_type", "architectures", "architecture", "_class_name") if key in foreign), None)
    whose = f"is of another library ({kind}={str(foreign[kind])[:60]!r})" if kind else "names no model of this library"
    return f"; its {CONFIG} {whose}: build the model with its own code, then call torchadder.convert"


def _warn_of_the_operator(model: Model, source: object) -> None:
    """Warn where the filters of an assumed AdderNet are as small as those of a CNN, or the reverse."""
    twin = create_on_meta(**{**model.config, "op": "adder"})
    filters = [model.get_parameter(f"{name}.weight") for name, m in twin.named_modules() if isinstance(m, Adder)]
    small = {root_mean_square(weight).item() < SMALL for weight in filters}
    if small == {model.config["op"] == "adder"}:
        was, others = ("an AdderNet", "small as those of a CNN: pass op='conv' or op='binary' if it is one")
        if model.config["op"] != "adder":
            was, others = (f"op='{model.config['op']}'", "large as those of an AdderNet: pass op='adder' if it is one")
        warnings.warn(
            f"{source} does not name its operator and is loaded as {was}, but its filters are as {others}", stacklevel=4
        )


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
    """Return ``path``, the checkpoint file in it where it is a directory, or the package's file of this name."""
    if not path.is_dir():
        if not path.is_file():
            if str(path) in list_pretrained():
                return pretrained_file(str(path))
            raise UserError(f"no checkpoint at {path}; expected {_kinds()}")
        return path
    for name in (BEST, WEIGHTS, PICKLE):
        if (path / name).is_file():
            return path / name
    if any(path.glob("*.index.json")):
        raise UserError(f"{path} holds a model in several files: save it in one, with a larger max_shard_size")
    raise UserError(f"{path} holds no {BEST} or {WEIGHTS}; expected {_kinds()}")


def _kinds() -> str:
    return (
        f"a run directory (or its {BEST} or {LAST}), a directory with {WEIGHTS}, a safetensors file, a state dict, or "
        f"a trained network of the package ({', '.join(list_pretrained())})"
    )


def _read_config(file: Path, metadata: Mapping[str, str] | None) -> dict[str, Any] | None:
    """Return the configuration in the metadata, else in config.json beside the file, else None.

    A configuration without "model" is that of another library.
    """
    beside = file.with_name(CONFIG)
    if metadata is None and file.name != PICKLE:
        return None
    if metadata and "tadder" in metadata:
        raise UserError(f"{file} is an integer program, not a checkpoint: torchadder.Engine runs it")
    if metadata and "torchadder" in metadata:
        text: Any = metadata["torchadder"]
    elif beside.exists():
        try:
            text = beside.read_text()
        except (OSError, ValueError):
            text = ""
    else:
        return None
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise UserError(f"{file} does not say which model it holds, in its metadata or {beside}")
    return about
