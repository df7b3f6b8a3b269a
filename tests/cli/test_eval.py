"""Test torchadder eval on every kind of checkpoint, and the line where a data set is missing or partial."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from torchadder.cli import main
from torchadder.data import cifar
from torchadder.data import registry as datasets
from torchadder.models import create_model


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model():
    """Return a CNN with filters as large as those of an AdderNet, since one of its files is read as one."""
    torch.manual_seed(3)
    model = create_model("lenet5bn", op="conv").eval()
    model.load_state_dict(create_model("lenet5bn", op="adder").state_dict())
    return model


def pretrained(model):
    model.save_pretrained("folder")
    return "folder"


def pretrained_file(model):
    model.save_pretrained("folder")
    return "folder/model.safetensors"


def published(model):
    names = {key: re.sub(r"^(conv|fc)(\d).weight$", r"\1\2.adder", key) for key in model.state_dict()}
    torch.save({names[key]: tensor for key, tensor in model.state_dict().items()}, "model.pth")
    return "model.pth"


KINDS = [(pretrained, "conv"), (pretrained_file, "conv"), (published, "adder")]


@pytest.mark.parametrize(("write", "op"), KINDS)
def test_checkpoints_without_a_data_set(model, capsys, write, op):
    path = write(model)
    twin = create_model("lenet5bn", op=op)
    twin.load_state_dict(model.state_dict())
    images = datasets.load_dataset("tiny").test
    with torch.no_grad():
        correct = int((twin.eval()(images.images).argmax(1) == images.labels).sum())
    assert main(["eval", path, "--dataset", "tiny"]) == 0
    line = rf"lenet5bn · {op} · tiny test {100 * correct / 30:.2f}% · loss [\d.]+ · 30 images in [\d.]+ s · "
    assert re.fullmatch(rf"{line}{correct}/30 correct\n", capsys.readouterr().out)
    assert main(["eval", path, "--dataset", "tiny", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["correct"], result["images"], result["epoch"], result["op"]) == (correct, 30, None, op)


@pytest.mark.parametrize(("write", "op"), KINDS)
def test_a_checkpoint_that_names_no_data_set_needs_one(model, capsys, write, op):
    path = write(model)
    assert main(["eval", path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: {path} does not say what it was trained on: pass --dataset \S*\|mnist\S*\n", err)


@pytest.fixture
def few_images():
    folder = Path("data", cifar.BINARY.folder)
    folder.mkdir(parents=True)
    for name in cifar.BINARY.md5:
        records = np.random.default_rng(0).integers(0, 10, (3, 3073), np.uint8)
        (folder / name).write_bytes(records.tobytes())


def test_partial_data_on_request(few_images, capsys):
    create_model("resnet20", op="conv").save_pretrained("folder")
    arguments = ["eval", "folder", "--dataset", "cifar10", "--data", "data"]
    assert main([*arguments, "--partial"]) == 0
    assert re.search(r"cifar10 test [\d.]+% .* 3 images in .* [0-3]/3 correct\n$", capsys.readouterr().out)
    assert main(arguments) == 2
    assert "data_batch_1.bin is not the published file" in capsys.readouterr().err


def test_partial_mnist(model, capsys):
    assert main(["eval", pretrained(model), "--dataset", "mnist", "--partial"]) == 2
    assert capsys.readouterr().err == "error: mnist is read whole or not at all; leave --partial out\n"


def shared_data():
    folder = Path(os.environ.get("TORCHADDER_DATA", "nowhere"))
    return folder if (folder / "ResNet20-AdderNet.pth").is_file() else None


SHARED = shared_data()


@pytest.mark.skipif(SHARED is None, reason="no ResNet20-AdderNet.pth at hand: set TORCHADDER_DATA")
def test_the_official_checkpoint(capsys):
    official = str(SHARED / "ResNet20-AdderNet.pth")
    assert main(["eval", official, "--dataset", "cifar10", "--data", str(SHARED), "--partial"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet20 · adder · cifar10 test 92.20% · loss 0.31")
    assert out.endswith(" s · 461/500 correct\n")


def test_one_answer_to_all_images_is_named(model, capsys):
    with torch.no_grad():
        model.bn5.weight.zero_()
    assert main(["eval", pretrained(model), "--dataset", "tiny", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 30
    assert err.startswith("warning: folder is no better than one answer to all 30 test images: it has learned nothing")
    assert err.count("\n") == 1
    command = ["quantize", "folder", "-o", "net.tadder", "--dataset", "tiny", "--no-eval"]
    for images, told in [("10", 1), ("9", 0)]:
        assert main([*command, "--images", images]) == 0
        assert capsys.readouterr().err.count(f"net.tadder gives nearly all {images} calibration images") == told
