"""Test torchadder quantize: its output, its file, that eval agrees, and the line of every mistake."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import CLASSES, pixels

from torchadder.cli import main
from torchadder.data import registry as datasets
from torchadder.engine import Engine
from torchadder.models.checkpoint import load_checkpoint
from torchadder.models.trained import build_network
from torchadder.quant import Program
from torchadder.quant.finetuning import RATES
from torchadder.train.run import saved_recipe
from torchadder.version import __version__


def result(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_quantize_prints_sizes_and_both_accuracies(folder, capsys):
    assert main(["quantize", "run", "-o", "new.tadder"]) == 0
    (first, second), err = (text.splitlines() for text in capsys.readouterr())
    size = Path("new.tadder").stat().st_size
    about = (
        f"new.tadder · lenet5bn · adder · 8 bits · 61,470 weights · {size:,} bytes · calibrated with 320 images "
        "of 1 x 32 x 32 (mse)"
    )
    assert first == about
    found = re.fullmatch(
        r"pixels test float ([\d.]+)%, 8 bits ([\d.]+)%: ([+-][\d.]+) points, ([+-]\d+) of 30 images", second
    )
    before, after, points, images = map(float, found.groups())
    assert points == pytest.approx(after - before, abs=0.011)
    assert images == round(0.3 * (after - before))
    assert err == []
    assert Path("new.tadder").read_bytes() == Path("run.tadder").read_bytes()


def test_accuracies_are_those_of_the_model_and_of_its_program(folder, capsys):
    found = result(capsys, "quantize", "run", "-o", "4.tadder", "--bits", "4", "--method", "max")
    test = pixels().test
    program = Program.load("4.tadder")
    with torch.no_grad():
        correct = [int((f(test.images).argmax(1) == test.labels).sum()) for f in (load_checkpoint("run"), program)]
    assert [found["float_correct"], found["correct"]] == correct
    assert found["accuracy"] == pytest.approx(100 * correct[1] / 30)
    tested = result(capsys, "eval", "4.tadder")
    assert (tested["correct"], tested["dataset"], tested["bits"]) == (correct[1], "pixels", 4)
    assert correct[0] > 20


def test_metadata_of_the_file(folder):
    about = Engine("run.tadder").about
    test = pixels().test
    with torch.no_grad():
        accuracy = (load_checkpoint("run")(test.images).argmax(1) == test.labels).double().mean().item()
    assert about.pop("float_accuracy") == pytest.approx(100 * accuracy)
    assert about == {
        **{"torchadder": __version__, "model": "lenet5bn", "op": "adder", "dataset": "pixels"},
        **{"bits": 8, "method": "mse", "calibration_images": 320, "finetune_epochs": 0},
        **{"mode": "L", "mean": "0.5", "std": "0.25", "part": "whole", "classes": json.dumps(CLASSES)},
    }


def test_no_eval_tests_nothing(folder, capsys):
    found = result(capsys, "quantize", "run", "-o", "new.tadder", "--no-eval", "--images", "7")
    assert found["calibration_images"] == 7
    assert not found.keys() & {"accuracy", "float_accuracy", "images"}
    assert main(["quantize", "run", "-o", "new.tadder", "--no-eval"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_the_recipe_of_the_run_decides_unless_told_otherwise(folder, capsys):
    shutil.copytree("run", "own")
    recipe = replace(saved_recipe(Path("own")), bits=5, finetune=1)
    Path("own/recipe.json").write_text(recipe.to_json())
    for arguments, expected in (((), (5, 1)), (("--bits", "6", "--finetune", "0"), (6, 0))):
        found = result(capsys, "quantize", "own", "-o", "new.tadder", "--no-eval", *arguments)
        assert (found["bits"], found["finetune_epochs"]) == expected


def test_the_seed_decides(folder, capsys):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        arguments = ["--no-eval", "--images", "16", "--seed", seed, "--finetune", "1", "--bits", "4"]
        assert main(["quantize", "run", "-o", f"{name}.tadder", *arguments]) == 0
    a, b, c = (Path(f"{name}.tadder").read_bytes() for name in "abc")
    assert a == b != c


def test_finetune_shows_its_epochs(folder, capsys):
    arguments = ["quantize", "run", "-o", "new.tadder", "--finetune", "2", "--bits", "3", "--no-eval"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d.]+$", "", line) for line in lines[:2]] == ["epoch 1/2  loss ", "epoch 2/2  loss "]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["finetune_epochs"], found["finetune_lr"]) == (2, RATES[True][0])
    assert err.splitlines() == lines[:2]
    assert main([*arguments, "--no-labels", "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (found["finetune_target"], found["finetune_lr"]) == ("answers", RATES[False][0])
    assert err.splitlines() != lines[:2]


def test_a_data_set_that_does_not_say_its_normalisation(folder, capsys):
    assert main(["train", "lenet5bn-tiny", "--epochs", "1", "--out", "other"]) == 0
    assert main(["quantize", "other", "-o", "other.tadder"]) == 0
    assert not Engine("other.tadder").about.keys() & {"mean", "classes"}


BAD = [  # arguments after quantize, words of the line
    (["run", "-o", "new.bin"], "new.bin: expected a name that ends in .tadder"),
    (["run", "-o", "nowhere/new.tadder"], "nowhere/new.tadder: nowhere is no folder; create it first"),
    (["run", "-o", "folder.tadder"], "folder.tadder: is a folder; choose another file name"),
    (["run"], "Missing option '--out' / '-o'"),
    (["run", "-o", "new.tadder", "--method", "kl"], "--method kl is unknown: expected mse, max, percentile"),
    (["run", "-o", "new.tadder", "--bits", "9"], "'--bits'"),
    (["run", "-o", "new.tadder", "--images", "0"], "'--images'"),
    (
        ["run", "-o", "new.tadder", "--finetune-lr", "1"],
        "--finetune-lr 1.0 is for fine-tuning: add --finetune EPOCHS, or leave it out",
    ),
    (
        ["run", "-o", "new.tadder", "--no-labels", "--finetune", "0"],
        "--no-labels is for fine-tuning: add --finetune EPOCHS, or leave it out",
    ),
    (["nowhere", "-o", "new.tadder"], "no checkpoint at nowhere"),
    (["run.tadder", "-o", "new.tadder"], "run.tadder is an integer program, not a checkpoint"),
    (
        ["run", "-o", "new.tadder", "--dataset", "other"],
        "run takes 1 channels and knows 10 classes; --dataset other has 1 and 5",
    ),
    (["model.pth", "-o", "new.tadder"], "model.pth does not say what it was trained on: pass --dataset"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_mistakes_are_one_line(folder, refused, monkeypatch, arguments, words):
    other = replace(pixels(), name="other", num_classes=5)
    monkeypatch.setitem(datasets._DATASETS, "other", lambda data_dir: other)
    Path("folder.tadder").mkdir()
    torch.save(load_checkpoint("run").state_dict(), "model.pth")
    assert words in refused(["quantize", *arguments])
    assert not Path("new.tadder").exists()


def test_eval_of_a_program(folder, capsys):
    assert main(["eval", "run.tadder"]) == 0
    line = r"lenet5bn · adder · 8 bits · pixels test ([\d.]+)% · loss [\d.]+ · 30 images in [\d.]+ s · (\d+)/30 correct"
    sizes = r" · [\d,]+ images/s · memory [\d,]+ \+ [\d,]+ KiB \(file \+ arena\)\n"
    found = re.fullmatch(line + sizes, capsys.readouterr().out)
    tested = result(capsys, "eval", "run.tadder", "--threads", "1")
    assert (tested["correct"], tested["threads"]) == (int(found[2]), 1)
    assert tested["file_bytes"] == Path("run.tadder").stat().st_size
    assert tested["arena_bytes"] > 0


def test_eval_of_a_program_of_other_images(folder, capsys, monkeypatch):
    larger = pixels()
    test = replace(larger.test, pixels=larger.test.pixels.repeat(1, 1, 2, 1))
    monkeypatch.setitem(datasets._DATASETS, "larger", lambda data_dir: replace(larger, name="larger", test=test))
    assert main(["eval", "run.tadder", "--dataset", "larger"]) == 2
    assert "run.tadder takes images of 32 x 32; those of --dataset larger have 64 x 32" in capsys.readouterr().err
    assert main(["eval", "run", "--threads", "1"]) == 2
    assert "--threads 1 is for a .tadder file" in capsys.readouterr().err
    program = Program.load("run.tadder")
    program.save("bare.tadder")
    assert main(["eval", "bare.tadder"]) == 2
    assert "bare.tadder does not say what it was trained on: pass --dataset" in capsys.readouterr().err
    assert main(["eval", "bare.tadder", "--dataset", "pixels"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("bare.tadder · pixels test ")
    assert err == ""
    monkeypatch.setitem(datasets._DATASETS, "unnamed", lambda data_dir=None: replace(pixels(), classes=()))
    assert main(["eval", "run.tadder", "--dataset", "unnamed"]) == 0
    assert capsys.readouterr().err == ""
    program.save("other.tadder", mean=0.9, std=0.1, classes=[*reversed(pixels().classes)])
    assert main(["eval", "other.tadder", "--dataset", "pixels"]) == 0
    told = "warning: pixels has not the mean, std, classes of other.tadder: the accuracy counts only where classes"
    assert told in capsys.readouterr().err


def test_a_network_of_ones_own(folder, capsys, monkeypatch):
    """Quantize, test and count a network that a function of the working directory builds."""
    Path("own_nets.py").write_text(
        "from torch import nn\n"
        "print('imported')\n"
        "def net(classes=10):\n"
        "    print('built')\n"
        "    body = [nn.Conv2d(1, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(392, classes)]\n"
        "    return nn.Sequential(*body)\n"
        "def small(): return net(3)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    torch.manual_seed(0)
    torch.save(build_network("own_nets:net").state_dict(), "own.pt")
    own = ["own_nets:net", "--weights", "own.pt"]
    made = result(capsys, "quantize", *own, "-o", "own.tadder", "--dataset", "pixels")
    tested = [result(capsys, "eval", *names) for names in ([*own, "--dataset", "pixels"], ["own.tadder"])]
    assert [made["float_correct"], made["correct"]] == [found["correct"] for found in tested]
    assert made["model"] == tested[0]["model"] == tested[1]["model"] == "own_nets:net"
    counts = result(capsys, "summary", "own_nets:net", "--input-size", "1x32x32")["total"]
    assert counts["parameters"] == 8 * 26 + 16 + 3930
    assert main(["quantize", "own_nets:small", "--weights", "own.pt", "-o", "x.tadder", "--dataset", "pixels"]) == 2
    assert "own.pt does not fit the network of own_nets:small: 4.weight has shape (10, 392)" in capsys.readouterr().err
