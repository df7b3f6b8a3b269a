"""Test the networks in the package: hash and accuracy as their page states, by name everywhere, and as C."""

import hashlib
import re
import shutil
from importlib.resources import files

import pytest
import torch

import torchadder
from torchadder.cli import main
from torchadder.data import load_dataset
from torchadder.data.mnist import MNIST, find_files
from torchadder.engine import Engine
from torchadder.export import export_c
from torchadder.models import pretrained
from torchadder.models.pretrained import list_pretrained
from torchadder.models.trained import open_trained

FOLDER = files("torchadder") / "pretrained"
ROW = re.compile(r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \| ([\d.]+)% \| `([\w-]+)` \|", flags=re.MULTILINE)
ROWS = ROW.findall((FOLDER / "README.md").read_text())
SUMS = dict(line.split()[::-1] for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
CHECKPOINTS = [f"{model}-{op}" for model in ("lenet5bn", "resnet20") for op in ("adder", "binary", "conv")]
DATA = {
    **{"lenet5bn-mnist": "mnist", "pico-mnist": "mnist28", "pico_wide-mnist": "mnist"},
    "resnet20-cifar10-short": "imagefolder:cifar10-jpeg,normalize=cifar",
}


def test_page_and_sums_have_every_file():
    present = {path.name for path in FOLDER.iterdir() if path.name.endswith((".tadder", ".safetensors"))}
    assert {name: digest for name, digest, *_ in ROWS} == SUMS
    assert SUMS.keys() == present
    assert list_pretrained() == CHECKPOINTS


@pytest.mark.parametrize(("name", "digest", "accuracy", "recipe"), ROWS, ids=[name for name, *_ in ROWS])
def test_hash_recipe_and_accuracy(name, digest, accuracy, recipe):
    content = (FOLDER / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    if name.endswith(".tadder"):
        network = Engine(content)
        about = network.about
        assert (about["model"], about["dataset"], int(about["bits"])) == (recipe.partition("-")[0], DATA[recipe], 4)
    else:
        network, about = open_trained(name.removesuffix(".safetensors"))
        assert (about.model["name"], about.dataset) == (recipe.partition("-")[0], DATA[recipe])
        assert f"{about.accuracy:.2f}" == accuracy
    if recipe.startswith("resnet20"):
        return  # its images are not among those that the tests need
    if find_files(MNIST, None) is None:
        pytest.skip("needs the files of MNIST in TORCHADDER_DATA or the cache")
    test = load_dataset(DATA[recipe]).test
    with torch.no_grad():
        predicted = torch.cat([network(images).argmax(1) for images in test.images.split(1000)])
    right = (predicted == test.labels).sum()
    assert f"{100 * right.item() / len(test):.2f}" == accuracy


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_a_trained_network_by_name(op):
    model = torchadder.create_model("lenet5bn", op, pretrained=True)
    assert not model.training
    assert model.config == torchadder.create_model("lenet5bn", op).config
    same = torchadder.from_pretrained(f"lenet5bn-{op}")
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model(x), same(x))


@pytest.mark.parametrize("op", ["adder", "conv", "binary"])
def test_resnet20_by_name(op):
    model = torchadder.create_model("resnet20", op, pretrained=True)
    assert model.config == torchadder.create_model("resnet20", op).config  # the gradient rule, too
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_a_trained_network_takes_the_gradient_rule_of_further_training():
    rule = torchadder.nn.GradientRule(weight="sign", numbers="int8")
    model = torchadder.create_model("lenet5bn", pretrained=True, grad=rule)
    assert {layer.grad for layer in model.modules() if isinstance(layer, torchadder.AdderConv2d)} == {rule}
    assert model.config["grad"] == rule._asdict()


@pytest.mark.parametrize("name", ["pico", "pico_wide.tadder"])
def test_a_program_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrained.find_program(name) == str(FOLDER / f"{name.removesuffix('.tadder')}.tadder")
    (tmp_path / name).touch()
    assert pretrained.find_program(name) == name  # a path comes first


@pytest.mark.parametrize("name", ["lenet5bn-adder", "resnet20", "other/pico", "pico.c"])
def test_names_of_no_program(name):
    assert pretrained.find_program(name) == name


def test_commands_take_a_program_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["export", "pico", "--to", "c", "-o", "made"], ["demo", "pico", "-o", "page.html"]):
        assert main(words) == 0
    assert (tmp_path / "made" / "net.c").is_file()
    assert (tmp_path / "page.html").is_file()
    capsys.readouterr()
    assert main(["predict", "pico", "none.png"]) == 2
    assert "none.png cannot be used" in capsys.readouterr().err  # the program was opened


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet32", {}, "no weights of resnet32-adder in the package, only of lenet5bn-adder, .*; train it"),
        ("lenet5bn", {"num_classes": 5}, "num_classes=5: the pretrained network has num_classes=10"),
        ("lenet5bn", {"recenter": True}, "recenter=True: the pretrained network has recenter=False"),
    ],
)
def test_networks_that_the_package_lacks(name, options, words):
    with pytest.raises(torchadder.errors.UserError, match=words):
        torchadder.create_model(name, pretrained=True, **options)


def test_a_changed_or_lost_file_is_refused(tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    file = tmp_path / "lenet5bn-conv.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(torchadder.errors.UserError, match="was changed: its hash is not the one in SHA256SUMS"):
        torchadder.create_model("lenet5bn", "conv", pretrained=True)
    file.unlink()
    with pytest.raises(torchadder.errors.UserError, match=r"cannot be read \(No such file or directory\); install"):
        torchadder.from_pretrained("lenet5bn-conv")


@pytest.mark.parametrize(("name", "flash"), [("pico.tadder", 16_000), ("pico_wide.tadder", 32_000)])
def test_memory_on_a_microcontroller(name, flash, tmp_path):
    """The code for Cortex-M, and RISC-V with a multiplier, has less than 3,500 bytes; the stack takes 352 at most."""
    draft = export_c(FOLDER / name, tmp_path / "net")
    assert draft.flash + 3500 <= flash
    if name == "pico.tadder":
        assert 28 * 28 + draft.arena + 352 <= 2048
