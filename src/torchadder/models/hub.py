"""Save and load pretrained models: as config.json and model.safetensors in a directory or on the Hugging Face hub.

This file adds the methods save_pretrained, from_pretrained, from_package and push_to_hub to Model.
"""

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

from torchadder import files
from torchadder.errors import UserError, first_line
from torchadder.version import __version__

from .checkpoint import (
    BEST,
    CONFIG,
    WEIGHTS,
    compare_states,
    cpu_state,
    create_on_meta,
    load_checkpoint,
)
from .pretrained import list_pretrained, pretrained_file
from .registry import Model

README = "README.md"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def save_pretrained(model: Model, directory: str | os.PathLike[str]) -> None:
    """Write ``model`` into ``directory``, which is created if necessary; from_pretrained reads it.

    model.safetensors holds the state in its own dtype, config.json the arguments of create_model, the name of the
    library and its version. Each file appears whole or not at all.

    Raises UserError for a run directory, whose config.json training writes, and where the model is no longer what
    its ``config`` builds, for example after convert(); OSError where a file cannot be written.
    """
    folder = Path(directory)
    if (folder / BEST).exists():
        raise UserError(f"{folder} is a run directory; save the model into another directory")
    tensors = cpu_state(model)
    _check_config(model, tensors)
    about = {"library_name": "torchadder", "library_version": __version__, "model": model.config}
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    files.write_bytes(folder / CONFIG, (json.dumps(about, indent=2) + "\n").encode())


def from_pretrained(name: str | os.PathLike[str], revision: str | None = None, op: str = "adder") -> Model:
    """Load a model from a local path, from the package, or from the hub by its name owner/name.

    A path may be any checkpoint that load_checkpoint reads, and has precedence. The package holds the networks of
    torchadder/pretrained/README.md, such as "lenet5bn-adder". From the hub only config.json and model.safetensors are
    fetched; ``revision`` is a branch, tag or commit there. ``op``: the operator of a model whose files do not name it.

    Returns a float32 Model in evaluation mode on the CPU. Raises UserError as load_checkpoint does, and where
    the hub has no such repository, refuses access to it, or cannot be reached.
    """
    path = Path(name)
    if path.exists() or os.fspath(name) in list_pretrained():
        if revision is not None:
            raise UserError(f"revision={revision} is for the hub, but {path} is local: leave it out")
        return load_checkpoint(path, op)
    repo_id = _repo_id(os.fspath(name))
    hub = _huggingface_hub()
    try:
        folder = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # its network libraries raise errors of many types
        raise _refusal(repo_id, revision, error) from error
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{repo_id} on the hub holds no {WEIGHTS}, so it is no model saved by push_to_hub")
    return load_checkpoint(folder / WEIGHTS, op)


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a torchadder model",
) -> str:
    """Upload ``model`` as save_pretrained writes it and return the URL; add a model card where there is none.

    The repository is created if necessary, and ``private`` then decides who sees it. ``token``: an access token with
    the right to write; None takes that of ``hf auth login``.

    Raises UserError as save_pretrained does, and where the hub refuses access or cannot be reached.
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
    """Return the text of README.md on the hub: a description of the model and the lines that load it."""
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
    expected = create_on_meta(**model.config)
    advice = "set model.config to the arguments of create_model that build it, or save its state_dict yourself"
    if problems := compare_states(expected.state_dict(), tensors):
        raise UserError(f"this model is not what its config builds ({problems}): {advice}")
    classes = _layer_classes(expected)
    for name, found in _layer_classes(model).items():
        if found is not classes[name]:
            raise UserError(
                f"this model is not what its config builds ({name} is {found.__name__}, "
                f"its config says {classes[name].__name__}): {advice}"
            )


def _layer_classes(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Map the name of every layer with a weight of two or more dimensions to its class.

    Normalisations are left out, since a run of several processes replaces them (SyncBatchNorm).
    """
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
    """Translate an error of huggingface_hub into one line."""
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


def _from_pretrained(
    cls: type[Model], name: str | os.PathLike[str], revision: str | None = None, op: str = "adder"
) -> Model:
    """Load a model as models.from_pretrained does. Raises UserError also where it is not of this class."""
    model = from_pretrained(name, revision, op)
    if not isinstance(model, cls):
        raise UserError(f"{name} holds {model.config['name']}, a {type(model).__name__}, not a {cls.__name__}")
    return model


def _from_package(name: str) -> Model:
    """Load the trained network of this name that the package holds. Raises UserError as pretrained_file does."""
    return load_checkpoint(pretrained_file(name))


Model.from_package = staticmethod(_from_package)
Model.save_pretrained = save_pretrained
Model.push_to_hub = push_to_hub
Model.from_pretrained = classmethod(_from_pretrained)  # type: ignore[assignment]
