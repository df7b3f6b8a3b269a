"""Read the state dict in a file of any name: safetensors or a pickle of torch, bare or in a training checkpoint.

The content decides what a file is, not its name. Files may come from strangers: pickles are read with
weights_only=True, and objects in them become placeholders, so that no code is run.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from torchadder.errors import UserError, first_line, shortened

# Where an envelope holds several state dicts, the first of these is taken. Averaged ones come last: they often hold
# averaged statistics of normalisations, which fit no AdderNet.
_ENTRIES = ("state_dict", "model_state_dict", "model", "net")
# Modules that wrap others: DataParallel and AveragedModel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_COUNTS = frozenset({"total_ops", "total_params", "n_averaged"})  # buffers of thop in each module, and of AveragedModel
_ADVICE = "save model.state_dict() where it was written, and load that"
_PICKLE_ADVICE = "save it with torch.save(model.state_dict(), path), without pickle_protocol"
_MOST_CLASSES = 32  # Each costs one more attempt to read the file.
_MAGIC = b"\x8a\x0a"  # the integer of ten bytes that begins the older files of torch.save, after the protocol
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def read_file(file: Path) -> tuple[Any, dict[str, str] | None]:
    """Return the content of ``file``, tensors on the CPU; and its metadata where it is safetensors, else None.

    Raises UserError where it is neither safetensors nor a pickle of torch, is damaged, or is an object of a class.
    """
    try:
        with open(file, "rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if problem := _other_kind(head):
        raise UserError(f"{file} {problem}")
    return _read_safetensors(file) if head[8:9] == b"{" else (_read_pickle(file), None)


def find_state(content: Any, source: object, names: Collection[str] = ()) -> tuple[dict[str, Tensor], list[str]]:
    """Return the state dict in ``content`` by plain names, and the names of the tensors that were left out.

    It may stand bare or in an envelope ({"epoch": 3, "state_dict": ...}). Plain names lack the names of wrappers
    (module., _orig_mod.) and those that all tensors share (model.). Left out are the counts of thop, other state dicts
    of the envelope, and what stands beside the network (criterion.weight beside model.conv1.weight). Tensors whose
    names are all in ``names``, those of a model, keep them.

    Raises UserError, which names ``source``, where there is none.
    """
    states = dict(_states(content))
    if not states:
        raise UserError(f"{source} holds {_why_no_state(content)}")
    first, *others = sorted(states, key=lambda name: _ENTRIES.index(name) if name in _ENTRIES else len(_ENTRIES))
    state = states[first]
    counts = [name for name in state if name.rpartition(".")[2] in _COUNTS]
    kept = {name: state[name] for name in state if name not in counts}
    if all(name in names for name in kept):
        return kept, counts + others
    plain = with_plain_names(kept)
    parts = {name.partition(".")[0] for name in plain}
    network = next((f"{name}." for name in _ENTRIES if name in parts), "")
    if network and len(parts) > 1 and not any(name in names for name in plain):  # beside a criterion, as in Lightning
        others += [name for name in plain if not name.startswith(network)]
        plain = {name.removeprefix(network): tensor for name, tensor in plain.items() if name.startswith(network)}
    return plain, counts + others


def _states(content: Any, name: str = "", depth: int = 2) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the state dicts in ``content`` with the names of their entries; not the states of an optimiser."""
    if isinstance(content, Mapping) and content and not _is_of_optimizer(content):
        if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
            yield name, content
        elif depth:
            for key, value in content.items():
                yield from _states(value, f"{name}.{key}" if name else str(key), depth - 1)


def _is_of_optimizer(content: Any) -> bool:
    return isinstance(content, Mapping) and "param_groups" in content


def _why_no_state(content: Any) -> str:
    if _is_of_optimizer(content):
        return f"the state of an optimizer: {_ADVICE}"
    if isinstance(content, _Unread):
        return f"a whole object ({type(content).__name__}), whose code was not run: {_ADVICE}"
    if not isinstance(content, Mapping):
        return f"no state dict, but a value of type {type(content).__name__}"
    inner = next((content[name] for name in _ENTRIES if isinstance(content.get(name), Mapping)), content)
    others = [
        f"{name!r} is of type {type(value).__name__}"
        for name, value in inner.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    return f"no state dict: {shortened(others)}; {_ADVICE}" if others else "an empty state dict"


def with_plain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    paths = {name: [part for part in name.split(".") if part not in _WRAPPERS] for name in state}
    while all(len(path) > 1 for path in paths.values()) and len({path[0] for path in paths.values()}) == 1:
        if all(len(path) == 2 for path in paths.values()):
            break  # the tensors of one layer
        paths = {name: path[1:] for name, path in paths.items()}
    plain = {".".join(path): state[name] for name, path in paths.items()}
    return plain if len(plain) == len(state) and "" not in plain else state


def _other_kind(head: bytes) -> str | None:
    """Say what a file with this head is and what to do, where it is clearly no checkpoint."""
    if not head:
        return "is empty: copy or download it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file that it stands for: run git lfs pull"
    if kind := next((kind for start, kind in _COMPRESSED.items() if head.startswith(start)), None):
        return f"is compressed ({kind}): unpack it first"
    text = head.decode(errors="ignore")
    if len(text.encode()) < len(head) - 3 or not all(c.isprintable() or c.isspace() for c in text):
        return None
    if text.lstrip().startswith("<"):
        return "is an HTML page, not a checkpoint: download the file itself"
    return f"is a text that begins with {text[:40]!r}, not a checkpoint"


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content = file.read_bytes()  # safe_open takes no path that is not UTF-8
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return dict(sorted(load(content).items())), head.get("__metadata__", {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged or incomplete ({first_line(error)}): copy or download it again") from error


class _Unread:
    """Stand for an object in a pickle, of a class that is not imported."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Unread:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_pickle(file: Path) -> Any:
    """Return what torch.save wrote to ``file``. torch's messages are not passed on: they advise weights_only=False."""
    if not _is_written_by_torch_save(file):
        raise UserError(f"{file} is an exported program or another archive, not a checkpoint: {_ADVICE}")
    classes: dict[str, type] = {}
    while True:
        try:
            with (
                open(file, "rb") as opened,
                warnings.catch_warnings(),
                torch.serialization.safe_globals([*classes.values()]),
            ):
                warnings.simplefilter("ignore")  # of kinds of files that are refused here
                return torch.load(opened, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged zip or pickle raises errors of many types
            found = re.search(r"GLOBAL (\S+)", str(error))
            if found is None:
                problem = "no checkpoint, damaged or incomplete: copy or download it again"
                if _is_pickled_otherwise(file):
                    problem = f"pickled in a way that needs its code to be run: {_PICKLE_ADVICE}"
                raise UserError(f"{file} is {problem}") from error
            if found[1] in classes or len(classes) == _MOST_CLASSES:
                what = f"pickled code ({_printable(found[1])}), which was not run"
                raise UserError(f"{file} holds {what}: {_ADVICE}") from error
            classes[found[1]] = _placeholder(found[1])


def _is_written_by_torch_save(file: Path) -> bool:
    """Say whether ``file`` is a zip of torch.save, or no zip, as those of older versions."""
    try:
        with zipfile.ZipFile(file) as opened:
            names = opened.namelist()
    except Exception:  # a damaged zip raises errors of many types
        return True
    return any(name.endswith("/data.pkl") for name in names) and not any("/constants.pkl" in name for name in names)


def _is_pickled_otherwise(file: Path) -> bool:
    """Say whether a pickle is not by torch.save, or of a protocol that torch.load cannot check."""
    with open(file, "rb") as opened:
        head = opened.read(4)
    if head[:2] != b"PK":
        return head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and head[2:] != _MAGIC
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(names[0]) as pickled:
                return pickled.read(2) not in (b"\x80\x02", b"\x80\x03")
    except Exception:  # a damaged zip raises errors of many types
        return False


def _placeholder(name: str) -> type:
    module, _, kind = name.rpartition(".")
    return type(_printable(kind), (_Unread,), {"__module__": module, "__qualname__": kind})


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)
