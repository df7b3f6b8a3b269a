"""Pretrained models in a directory (config.json and model.safetensors) or on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from torchadder import atomic
from torchadder.errors import UserError
from torchadder.models.checkpoint import BEST, CONFIG, WEIGHTS, load_checkpoint
from torchadder.models.registry import Model
from torchadder.models.state import blueprint, difference, first_line, tensors_of
from torchadder.version import __version__

README = "README.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def save_pretrained(model: Model, directory: str | os.PathLike[str]) -> None:
    """Write ``model`` into ``directory``, which is made where it does not exist; from_pretrained reads it.

    model.safetensors holds the state as it is, config.json the arguments of create_model, the library and its
    version. Each file appears whole or not at all.

    Raises UserError for a run directory (training owns its config.json), and where the model is no longer what
    its ``config`` says, for example after convert(); OSError where the disk refuses.
    """
    folder = Path(directory)
    if (folder / BEST).exists():
        raise UserError(f"{folder} is a run directory; save the model into another one")
    tensors = tensors_of(model)
    _check_config(model, tensors)
    about = {"library_name": "torchadder", "library_version": __version__, "model": model.config}
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    atomic.write_bytes(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def from_pretrained(name: str | os.PathLike[str], revision: str | None = None) -> Model:
    """The model in a local directory, or on the hub under the name owner/name; a directory comes first.

    A path may be any checkpoint that load_checkpoint reads. From the hub come config.json and model.safetensors
    and nothing else; ``revision`` is a branch, tag or commit there.

    Returns a float32 Model in evaluation mode on the CPU. Raises UserError as load_checkpoint does, and where
    the hub has no such repository, refuses it, or cannot be reached.
    """
    path = Path(name)
    if path.exists():
        if revision is not None:
            raise UserError(f"revision {revision!r} is one of the hub, but {path} is here; leave it out")
        return load_checkpoint(path)
    repo_id = _repo_id(os.fspath(name))
    hub = _huggingface_hub()
    try:
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # its network libraries fail in every way there is
        raise _refusal(repo_id, revision, error) from error
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{repo_id} on the hub holds no {WEIGHTS}, so it is no model saved by push_to_hub")
    return load_checkpoint(folder / WEIGHTS)


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a torchadder model",
) -> str:
    """Upload ``model`` as save_pretrained writes it, with a short model card where there is none; return its URL.

    The repository is made where it does not exist, and ``private`` then decides who sees it. ``token``: the one
    to write with, else that of ``hf auth login``.

    Raises UserError as save_pretrained does, and where the hub refuses or cannot be reached.
    """
    repo_id = _repo_id(repo_id)
    hub = _huggingface_hub()
    with tempfile.TemporaryDirectory(prefix="torchadder-") as folder:
        save_pretrained(model, folder)
        try:
            api = hub.HfApi(token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            if not api.file_exists(repo_id, README):  # the owner's own text is kept
                (Path(folder) / README).write_text(model_card(model, repo_id), encoding="utf-8")
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
        except Exception as error:
            raise _refusal(repo_id, None, error) from error
    return str(url)


def model_card(model: Model, repo_id: str) -> str:
    """The text of README.md on the hub: what the model is, and the lines that load it."""
    config = {key: value for key, value in model.config.items() if value is not None}
    name = config.pop("name")
    arguments = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in config.items())])
    size = " x ".join(map(str, model.input_size))
    return f"""---
library_name: torchadder
pipeline_tag: image-classification
tags:
- addernet
---

# {repo_id.partition("/")[2]}

{name} with op "{config["op"]}": images of {size} in, logits of {config["num_classes"]} classes out.

```python
import torchadder

model = torchadder.from_pretrained("{repo_id}")
```

The same network without these weights: `torchadder.create_model({arguments})`.
"""


def _check_config(model: Model, tensors: Mapping[str, Tensor]) -> None:
    twin = blueprint(**model.config)
    advice = "set model.config to the arguments of create_model that build it, or save its state_dict yourself"
    if problems := difference(twin.state_dict(), tensors):
        raise UserError(f"this model is not what its config builds ({problems}): {advice}")
    classes = _layer_classes(twin)
    for name, found in _layer_classes(model).items():
        if found is not classes[name]:
            raise UserError(
                f"this model is not what its config builds ({name} is {found.__name__}, "
                f"its config says {classes[name].__name__}): {advice}"
            )


def _layer_classes(model: nn.Module) -> dict[str, type[nn.Module]]:
    """The class of every layer with a filter tensor; normalisations may be exchanged (SyncBatchNorm)."""
    weights = ((name, module, getattr(module, "weight", None)) for name, module in model.named_modules())
    return {name: type(module) for name, module, weight in weights if weight is not None and weight.dim() > 1}


def _repo_id(name: str) -> str:
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"{name} is neither a directory here nor the name of a model on the hub (owner/name)")
    return name


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError('the hub needs huggingface_hub: pip install "torchadder[hf]"') from error
    return huggingface_hub


def _refusal(repo_id: str, revision: str | None, error: Exception) -> UserError:
    """The line for an error of huggingface_hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return UserError(f"{repo_id} is gated: accept its conditions on its page of the hub, then hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"there is no directory {repo_id} here, and no model of that name on the hub that you may read"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repo_id} on the hub has no revision {revision!r}")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return UserError(
            f"there is no directory {repo_id} here, it is not in the hub's cache, and the hub is out of reach"
        )
    return UserError(f"{repo_id}: the hub refused ({first_line(error)})")
