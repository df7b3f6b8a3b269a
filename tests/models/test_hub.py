"""Test pretrained models: the same model comes back from a directory and from the hub, which is replaced here."""

import builtins
import json
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import torchadder
from torchadder.errors import UserError
from torchadder.models import Model, create_model, from_pretrained, list_models
from torchadder.models.checkpoint import load_checkpoint, save_checkpoint
from torchadder.models.hub import model_card
from torchadder.models.lenet import LeNet5BN
from torchadder.models.resnet import ResNet
from torchadder.nn import AdderConv2d, GradientRule
from torchadder.version import __version__

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")


@pytest.fixture
def model():
    torch.manual_seed(3)
    model = create_model("lenet5bn", grad=GradientRule("sign", "sign"))
    model(torch.randn(4, 1, 32, 32))  # moves the running statistics
    return model.eval()


def same(a, b):
    return a.config == b.config and all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
@pytest.mark.parametrize("name", list_models())
def test_every_model_comes_back(tmp_path, name, op):
    model = create_model(name, op=op, num_classes=np.int64(3)).eval()
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = from_pretrained(tmp_path / "new" / "folder")
    assert same(loaded, model)
    assert type(loaded) is type(model)
    assert loaded.input_size == model.input_size
    channels, size, _ = model.input_size
    x = torch.randn(1, channels, min(size, 32), min(size, 32))
    assert torch.equal(loaded(x), model(x))


def test_what_is_written(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "library_name": "torchadder",
        "library_version": __version__,
        "model": model.config,
    }
    with safe_open(tmp_path / "model.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert set(opened.keys()) == set(model.state_dict())


def test_all_functions_load_the_same_model(tmp_path, model):
    model.save_pretrained(str(tmp_path))
    for load in (torchadder.from_pretrained, Model.from_pretrained, LeNet5BN.from_pretrained, load_checkpoint):
        assert same(load(str(tmp_path)), model)
    assert same(load_checkpoint(tmp_path / "model.safetensors"), model)
    with pytest.raises(UserError, match="holds lenet5bn, a LeNet5BN, not a ResNet"):
        ResNet.from_pretrained(tmp_path)


def test_a_run_directory_is_loaded_and_not_overwritten(tmp_path, model):
    save_checkpoint(tmp_path, model, dataset="mnist", epoch=1, accuracy=90.0)
    assert same(from_pretrained(tmp_path), model)
    with pytest.raises(UserError, match="is a run directory; save the model into another directory"):
        model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["epoch"] == 1


def test_shared_strided_and_half_tensors(tmp_path, model):
    model.to(memory_format=torch.channels_last)
    model.bn1.running_mean = model.bn1.running_var  # one tensor under two names
    assert not model.conv2.weight.is_contiguous()
    model.save_pretrained(tmp_path / "float")
    assert same(from_pretrained(tmp_path / "float"), model)
    model.half().save_pretrained(tmp_path / "half")
    loaded = from_pretrained(tmp_path / "half")
    assert loaded.conv2.weight.dtype == torch.float32
    assert torch.equal(loaded.conv2.weight, model.conv2.weight.float())


def test_a_model_with_synchronised_normalisation_is_the_same_model(tmp_path, model):
    nn.SyncBatchNorm.convert_sync_batchnorm(model).save_pretrained(tmp_path)
    assert same(from_pretrained(tmp_path), model)


def test_a_second_save_replaces_the_first_whole_or_not_at_all(tmp_path, model, fill_disk):
    model.save_pretrained(tmp_path)
    other = create_model("resnet20", op="conv")
    other.save_pretrained(tmp_path)
    assert same(from_pretrained(tmp_path), other)
    fill_disk("model.safetensors")
    with pytest.raises(OSError, match="No space left"):
        create_model("resnet20").save_pretrained(tmp_path)
    assert same(from_pretrained(tmp_path), other)


def other_classes(model):
    model.fc2 = nn.Linear(84, 3, bias=False)


def other_layer(model):
    model.conv1 = nn.Conv2d(1, 6, 5, bias=False)


def more_layers(model):
    model.extra = AdderConv2d(1, 1, 1, bias=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_classes, r"fc2.weight has shape \(3, 84\), expected \(10, 84\)"),
        (other_layer, "conv1 is Conv2d, its config says AdderConv2d"),
        (more_layers, "unexpected extra.weight"),
    ],
)
def test_a_model_that_is_not_its_config_is_not_saved(tmp_path, model, change, words):
    change(model)
    with pytest.raises(UserError, match=f"this model is not what its config builds .*{words}.*: set model.config"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("nowhere", None, r"nowhere is neither a directory here nor the name of a model on the hub \(owner/name\)"),
        ("./owner/name", None, "neither a directory"),
        ("/owner/name", None, "neither a directory"),
        ("owner/name/more", None, "neither a directory"),
        ("owner/", None, "neither a directory"),
        ("../name", None, "neither a directory"),
        ("owner/na me", None, "neither a directory"),
        ("", "main", "revision=main is for the hub, but . is local"),
        (".", None, "holds no best.safetensors or model.safetensors"),
    ],
)
def test_names_that_are_refused(tmp_path, monkeypatch, name, revision, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        from_pretrained(name, revision)
    assert "\n" not in str(caught.value)


# the hub


@pytest.fixture
def repository(tmp_path, monkeypatch, model):
    """Replace the download from the hub by a folder; calls are checked against the real signature."""
    folder = tmp_path / "snapshot"
    model.save_pretrained(folder)
    download = create_autospec(huggingface_hub.snapshot_download, return_value=str(folder))
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return SimpleNamespace(folder=folder, download=download)


@pytest.mark.parametrize("revision", [None, "v1"])
def test_from_the_hub(repository, model, revision):
    assert same(from_pretrained("owner/some-model.v1", revision=revision), model)
    files = ["config.json", "model.safetensors"]
    repository.download.assert_called_once_with("owner/some-model.v1", revision=revision, allow_patterns=files)


def test_a_directory_comes_before_the_hub(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = create_model("lenet5bn", op="conv")
    other.save_pretrained("owner/name")
    assert same(from_pretrained("owner/name"), other)
    repository.download.assert_not_called()


def test_a_run_in_the_hub_s_cache_is_not_what_was_asked_for(repository, model):
    (repository.folder / "best.safetensors").write_bytes(b"junk")
    assert same(from_pretrained("owner/name"), model)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.safetensors", None, "owner/name on the hub holds no model.safetensors"),
        ("model.safetensors", b"junk", "model.safetensors is a text that begins with 'junk'"),
        ("config.json", b"junk", "does not say which model it holds"),
        ("config.json", b'{"model": {"name": "resnet20"}}', "does not fit resnet20: missing layer1"),
    ],
)
def test_a_repository_of_something_else(repository, file, content, words):
    if content is None:
        (repository.folder / file).unlink()
    else:
        (repository.folder / file).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        from_pretrained("owner/name")
    assert "\n" not in str(caught.value)


def refusal(kind, text="first line\nsecond line"):
    """Make an error of the hub without its constructor, which differs between versions."""
    error = kind.__new__(kind)
    error.args = (text,)
    return error


REFUSALS = [
    (refusal(errors.RepositoryNotFoundError), "no directory owner/name here, and no model of that name on the hub"),
    (refusal(errors.GatedRepoError), "owner/name is gated: accept its conditions"),
    (refusal(errors.RevisionNotFoundError), "owner/name on the hub has no revision 'v1'"),
    (refusal(errors.LocalEntryNotFoundError), "it is not in the hub's cache, and the hub is out of reach"),
    (refusal(errors.OfflineModeIsEnabled), "the hub is out of reach"),
    (ValueError("bad\nname"), r"owner/name: the hub refused \(bad\)"),
    (ConnectionResetError(), r"owner/name: the hub refused \(ConnectionResetError\)"),
]


@pytest.mark.parametrize(("error", "words"), REFUSALS)
def test_the_hub_refuses(monkeypatch, error, words):
    def snapshot_download(repo_id, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=words) as caught:
        from_pretrained("owner/name", revision="v1")
    assert "\n" not in str(caught.value)


def test_offline_from_the_hub_s_own_cache(tmp_path, monkeypatch, model):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the hub is out of reach"):
        from_pretrained("owner/name")
    commit = "0123456789abcdef" * 2 + "01234567"
    model.save_pretrained(tmp_path / "models--owner--name" / "snapshots" / commit)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        assert same(from_pretrained("owner/name", revision), model)


@pytest.mark.parametrize("call", [lambda model: from_pretrained("owner/name"), lambda m: m.push_to_hub("owner/name")])
def test_without_huggingface_hub(monkeypatch, model, call):
    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'the hub needs huggingface_hub: pip install "torchadder\[hf\]"$'):
        call(model)


@pytest.fixture
def hub(monkeypatch):
    """Replace the API of the hub, with its real signatures; ``files`` is the content of the repository."""
    api = create_autospec(huggingface_hub.HfApi)
    files = {}

    def upload_folder(*, folder_path, **options):
        files.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    api.return_value.create_repo.side_effect = lambda repo_id, **options: f"https://hub/{repo_id}"
    api.return_value.file_exists.side_effect = lambda repo_id, filename: filename in files
    api.return_value.upload_folder.side_effect = upload_folder
    monkeypatch.setattr("huggingface_hub.HfApi", api)
    return SimpleNamespace(login=api, api=api.return_value, files=files)


def test_push(hub, model, tmp_path):
    url = model.push_to_hub("owner/name", private=True, token="secret", commit_message="first")
    assert url == "https://hub/owner/name"
    hub.login.assert_called_once_with(token="secret")
    hub.api.create_repo.assert_called_once_with("owner/name", private=True, exist_ok=True)
    assert hub.api.upload_folder.call_args.kwargs["commit_message"] == "first"
    assert hub.files["README.md"].decode() == model_card(model, "owner/name")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes(hub.files[file])
    assert same(from_pretrained(tmp_path), model)


def test_a_model_card_of_the_owner_is_kept(hub, model):
    hub.files["README.md"] = b"mine"
    model.push_to_hub("owner/name")
    assert hub.files["README.md"] == b"mine"
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize(("error", "words"), REFUSALS[:2] + REFUSALS[4:])
def test_push_refused(hub, model, error, words):
    hub.api.create_repo.side_effect = error
    with pytest.raises(UserError, match=words) as caught:
        model.push_to_hub("owner/name")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["name", "owner/name/more", ""])
def test_push_to_no_name(hub, model, name):
    with pytest.raises(UserError, match="neither a directory here nor the name of a model on the hub"):
        model.push_to_hub(name)
    hub.login.assert_not_called()


def test_the_model_card_s_lines_work(model):
    card = model_card(model, "owner/name")
    assert card.startswith("---\nlibrary_name: torchadder\n")
    assert "# name\n" in card
    assert 'torchadder.from_pretrained("owner/name")' in card
    line = card[card.index("torchadder.create_model(") :].partition("`")[0]
    assert eval(line, {"torchadder": torchadder}).config == model.config
