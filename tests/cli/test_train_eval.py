"""Test torchadder train and eval in process: what is printed where; the line and the exit code of every error."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from torchadder.cli import main
from torchadder.data import registry as datasets
from torchadder.train import Progress
from torchadder.train import loop as loop_module

TRAIN = ["train", "lenet5bn-tiny", "--out", "run"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(capsys):
    assert main([*TRAIN, "--epochs", "2"]) == 0
    capsys.readouterr()


def test_train_prints_header_epochs_and_result(capsys, tmp_path):
    assert main([*TRAIN, "--epochs", "2"]) == 0
    out, err = capsys.readouterr()
    header, first, second, warning, result = out.splitlines()
    assert header.startswith("lenet5bn-tiny · adder · 61,942 parameters · 0 multiplications in 5 layers · ALR eta 0.2")
    assert re.fullmatch(r"epoch 1/2  loss \d\.\d{3}  test [\d.]+%  [\d.]+ s  [\d,]+ images/s  eta \d:\d\d", first)
    assert second.startswith("epoch 2/2")
    assert re.fullmatch(
        r"warning: after epoch 2 the test accuracy, [\d.]+%, is no better than one answer to every image, although "
        r"that on training images is [\d.]+%; .* start a new run with --norm-batches 50, or train longer",
        warning,
    )
    assert re.fullmatch(r"test accuracy [\d.]+% after 2 epochs \(best [\d.]+% in epoch [12]\) · 0:0\d · run", result)
    assert err == ""
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_train_ends_with_a_page(capsys, tmp_path):
    assert main([*TRAIN, "--epochs", "1", "--report"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report: run/report.html"
    assert "<!doctype html>" in (tmp_path / "run" / "report.html").read_text()


def test_training_succeeds_without_its_page(capsys, tmp_path):
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    assert main([*TRAIN, "--epochs", "1", "--report", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["epochs"] == 1
    assert err.splitlines()[-1].endswith("run/report.html: is a folder; choose another file name")


def test_train_conv_counts_its_multiplications(capsys):
    assert main([*TRAIN, "--epochs", "1", "--op", "conv"]) == 0
    assert " · conv · 61,942 parameters · 416,520 multiplications in 5 layers · " in capsys.readouterr().out


def test_train_json_is_one_object_on_stdout(capsys):
    assert main([*TRAIN, "--epochs", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["epochs"] == 1
    assert "epoch 1/1" in err


def test_default_folder(tmp_path):
    assert main(["train", "lenet5bn-tiny", "--epochs", "1", "--seed", "3", "--op", "conv"]) == 0
    assert (tmp_path / "runs" / "lenet5bn-tiny-conv-s3" / "last.pt").exists()


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (["--grad", "sign"], {"weight_grad": "sign", "input_grad": "sign", "lr_scheme": "alr"}),
        (["--grad", "full"], {"weight_grad": "full", "input_grad": "hardtanh"}),
        (["--lr-scheme", "ilr", "--ilr-factor", "50"], {"lr_scheme": "ilr", "ilr_factor": 50.0}),
        (["--lr-scheme", "plain", "--input-grad", "full"], {"lr_scheme": "plain", "input_grad": "full"}),
        (["--no-nesterov", "--momentum", "0", "--channels-last"], {"nesterov": False, "channels_last": True}),
        (["--optimizer", "adam", "--lr", "0.001", "--ema", "0.9"], {"optimizer": "adam", "lr": 0.001, "ema": 0.9}),
        (["--schedule", "step", "--milestones", "1,2"], {"schedule": "step", "milestones": "1,2"}),
        (["--dataset", "tiny", "--deterministic"], {"dataset": "tiny", "deterministic": True}),
        (["--accumulate", "2", "--label-smoothing", "0.1"], {"accumulate": 2, "label_smoothing": 0.1}),
        (["--eta", "0.02", "--batch-size", "8", "--lr", "1"], {"eta": 0.02, "batch_size": 8, "lr": 1.0}),
    ],
)
def test_flags_reach_the_recipe(tmp_path, flags, fields):
    assert main([*TRAIN, "--epochs", "1", *flags]) == 0
    saved = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert {name: saved[name] for name in fields} == fields


def test_resume_keeps_the_recipe_of_the_run(run, capsys):
    assert main([*TRAIN, "--resume"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run is finished: all 2 epochs are done\ntest accuracy")
    assert main([*TRAIN, "--resume", "--epochs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 2


def interrupt(epoch):
    class Interrupt(Progress):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.close()

        def close(self):
            pass

        def stepped(self, now, step, loss):
            if now == epoch:
                raise KeyboardInterrupt

    return lambda stream: Interrupt()


@pytest.mark.parametrize("epoch", [1, 2])
def test_ctrl_c_names_the_command_that_continues(capsys, monkeypatch, tmp_path, epoch):
    with monkeypatch.context() as patched:
        patched.setattr("torchadder.cli.train.TrainingProgress", interrupt(epoch))
        assert main([*TRAIN, "--epochs", "2"]) == 130
    command = "torchadder train lenet5bn-tiny --out run --resume"
    expected = f"error: interrupted; {epoch - 1}/2 epochs are saved, continue with: {command}\n"
    assert capsys.readouterr() == ("", expected)
    assert main(command.split()[1:]) == 0
    assert ("continues after epoch 1" in capsys.readouterr().out) == (epoch == 2)
    assert main(["train", "lenet5bn-tiny", "--out", "other", "--epochs", "2"]) == 0
    assert (tmp_path / "run/best.safetensors").read_bytes() == (tmp_path / "other/best.safetensors").read_bytes()


def test_ctrl_c_before_anything_is_written(capsys, monkeypatch, tmp_path):
    def interrupted(data_dir):
        raise KeyboardInterrupt

    monkeypatch.setitem(datasets._DATASETS, "tiny", interrupted)
    assert main(TRAIN) == 130
    assert capsys.readouterr().err == "error: interrupted before training began; nothing was written\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("checkpoint", ["run", "run/best.safetensors", "run/last.pt"])
def test_eval(run, capsys, checkpoint):
    assert main(["eval", checkpoint, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["model"], result["op"], result["dataset"], result["images"]) == (
        "lenet5bn",
        "adder",
        "tiny",
        30,
    )
    with open("run/metrics.jsonl") as f:
        rows = [json.loads(line) for line in f]
    assert result["accuracy"] == rows[result["epoch"] - 1]["test_accuracy"]
    if checkpoint.endswith("last.pt"):
        assert result["epoch"] == 2
    assert main(["eval", checkpoint]) == 0
    assert re.search(
        r"lenet5bn · adder · epoch \d · tiny test [\d.]+% · loss [\d.]+ · 30 images", capsys.readouterr().out
    )


def write(name, content):
    def prepare(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return prepare


def pictures(size):
    def prepare(folder):
        for place in ("train/a", "train/b", "test/a"):
            (folder / "x" / place).mkdir(parents=True)
            Image.new("RGB", (size, size)).save(folder / "x" / place / "0.png")

    return prepare


def nothing(folder):
    pass


OWN = [*TRAIN, "--batch-size", "2", "--dataset"]
USER_ERRORS = [  # what lies in the folder, arguments -> the words that the line must contain
    (nothing, ["train", "lenet-mnist"], "lenet-mnist is unknown: expected one of lenet5bn-"),
    (nothing, ["train"], "Missing argument 'RECIPE': see torchadder train --help"),
    (nothing, ["trian"], "No such command 'trian'"),
    (nothing, [*TRAIN, "--epoch", "3"], "No such option: --epoch"),
    (nothing, [*TRAIN, "--epochs", "many"], "'--epochs'"),
    (nothing, [*TRAIN, "--epochs", "0"], "--epochs 0 is out of range: expected at least 1"),
    (nothing, [*TRAIN, "--op", "xor"], "--op xor is out of range: expected adder, conv or binary"),
    (nothing, [*TRAIN, "--warmup-epochs", "3"], "--warmup-epochs 3 is out of range: expected below --epochs 3"),
    (nothing, [*TRAIN, "--augment"], "--augment, but tiny has no augmentation: leave it out, or pass --no-augment"),
    (nothing, [*TRAIN, "--dataset", "mnits"], "--dataset mnits is unknown: expected one of "),
    (nothing, [*TRAIN, "--dataset", "mnist", "--data", "nowhere"], "--data nowhere is no folder"),
    (nothing, [*TRAIN, "--grad", "half"], "--grad half is out of range: expected full or sign"),
    (nothing, [*TRAIN, "--grad", "sign", "--input-grad", "full"], "--grad sets --input-grad as well"),
    (nothing, [*TRAIN, "--batch-size", "51"], "--batch-size 51 is more than the 50 training images"),
    (nothing, [*TRAIN, "--resume"], "run holds no run to resume"),
    (
        write("data/train-images-idx3-ubyte", b"\0\0\x08\3"),
        ["train", "lenet5bn-mnist", "--data", "data"],
        "data holds a part of mnist, but not train-labels-idx1-ubyte.gz",
    ),
    (write("run", b""), TRAIN, "--out run: run is a file; choose another folder"),
    (write("file", b""), [*TRAIN[:-1], "file/run"], "file is a file; choose another folder"),
    (pictures(28), [*OWN, "imagefolder:x"], "lenet5bn does not take its images of 28 x 28 with 3 channels"),
    (pictures(30), [*OWN, "imagefolder:x,size=16"], "it is made for 32 x 32: name it with size=32"),
    (nothing, ["eval", "nowhere"], "no checkpoint at nowhere"),
    (write("run/config.json", b"{}"), ["eval", "run"], "run holds no best.safetensors"),
    (write("run/best.safetensors", b"junk"), ["eval", "run"], "not a checkpoint"),
    (
        write("run.tadder", b"junk"),
        ["eval", "run.tadder"],
        "run.tadder is not a valid program: ",
    ),
    (lambda folder: (folder / "x").mkdir(), ["predict", "x", "a.png"], "expected the path of a .tadder file"),
    (
        lambda folder: torch.save({"a": torch.zeros(1)}, folder / "a.pt"),
        ["predict", "a.pt", "a.png"],
        "a.pt is not a valid program: it is a checkpoint",
    ),
    (nothing, ["eval", "x.tadder", "--weights", "a.pt"], "--weights a.pt is for package.module:function"),
    (nothing, ["quantize", "nets:net", "-o", "a.tadder"], "nets:net builds a network without trained weights"),
    (nothing, ["summary", "nets:net"], "nets:net: pass the shape of an input with --input-size"),
]


def assert_one_line(capsys, words):
    out, err = capsys.readouterr()
    assert out == ""
    *others, line = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert all(other.startswith("imagefolder: ") for other in others)  # the decoding of the images


@pytest.mark.parametrize(("prepare", "arguments", "words"), USER_ERRORS)
def test_mistake_of_the_user_is_one_line_and_exit_code_2(tmp_path, capsys, prepare, arguments, words):
    prepare(tmp_path)
    assert main(arguments) == 2
    assert_one_line(capsys, words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (TRAIN, "run already holds a run: continue it with --resume, or choose another folder"),
        ([*TRAIN, "--resume", "--epochs", "3"], "another recipe: epochs (run: 2, now: 3)"),
        ([*TRAIN, "--resume", "--op", "conv"], "another recipe: op (run: adder, now: conv)"),
        (
            ["train", "lenet5bn-mnist", "--out", "run", "--resume"],
            "name (run: lenet5bn-tiny, now: lenet5bn-mnist)",
        ),
        (["eval", "run", "--dataset", "mnits"], "--dataset mnits is unknown: expected one of "),
    ],
)
def test_mistake_with_an_existing_run(run, capsys, arguments, words):
    assert main(arguments) == 2
    assert_one_line(capsys, words)


def test_a_run_without_an_epoch_says_how_to_go_on(run, capsys, tmp_path):
    (tmp_path / "run" / "last.pt").unlink()
    assert main(TRAIN) == 2
    assert_one_line(capsys, "run already holds a run, without a finished epoch: delete it, choose another folder, or")


def test_data_set_with_other_classes(run, capsys, monkeypatch):
    import dataclasses

    other = dataclasses.replace(datasets._DATASETS["tiny"](), name="other", num_classes=100)
    monkeypatch.setitem(datasets._DATASETS, "other", lambda data_dir: other)
    assert main(["eval", "run", "--dataset", "other"]) == 2
    assert_one_line(capsys, "knows 10 classes; --dataset other has 1 and 100: choose another")


def test_full_disk_is_one_line(capsys, fill_disk):
    fill_disk("last.pt")
    assert main(TRAIN) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: cannot write to run: No space left on device; there is no checkpoint yet: ")
    assert err.count("\n") == 1


def test_loss_that_is_not_finite_is_one_line(capsys):
    assert main([*TRAIN, "--op", "conv", "--lr", "1e30", "--batch-size", "10"]) == 2
    err = capsys.readouterr().err
    assert re.match(r"error: NaN or infinite numbers in epoch 1, first in the output of \w+ \(\w+\): start a new", err)
    assert err.count("\n") == 1


def test_tensorboard_that_is_not_installed(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([*TRAIN, "--tensorboard"]) == 2
    assert_one_line(capsys, 'TensorBoard needs the package tensorboard: pip install "torchadder[log]"')
    assert not (tmp_path / "run").exists()


def test_help_lists_the_flags_in_groups(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    groups = re.findall(r"^╭─ ([\w ]+?) ─", out, re.MULTILINE)
    training = ["Network", "Images", "Optimiser", "Learning rate", "Adder layers", "Distillation", "Numbers"]
    assert groups == ["Arguments", "Options", *training, "Quantization"]
    assert out.index("Adder layers") < out.index("--grad ") < out.index("Numbers")


def test_as_a_module():
    command = [sys.executable, "-m", "torchadder", "train", "lenet-mnist"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: lenet-mnist is unknown: expected one of lenet5bn-")


@pytest.fixture
def broken(monkeypatch):
    def create_model(*args, **kwargs):
        raise RuntimeError("a bug\nof ours")

    monkeypatch.setattr(loop_module, "create_model", create_model)


def test_fault_of_torchadder_is_one_line_and_exit_code_1(broken, capsys):
    assert main(TRAIN) == 1
    assert_one_line(capsys, "unexpected RuntimeError: a bug of ours; run again with --debug for the traceback")


@pytest.mark.parametrize("arguments", [["--debug", *TRAIN], [*TRAIN, "--debug"]])
def test_debug_prints_the_traceback(broken, capsys, arguments):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.splitlines()[-1].startswith("error: unexpected RuntimeError")


def test_debug_of_a_mistake(capsys):
    assert main(["--debug", "train", "nothing"]) == 2
    assert "Traceback" in capsys.readouterr().err
