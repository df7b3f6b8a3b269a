"""Test training in two processes: the numbers of one process, one line for every error, restart after a kill."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tests.conftest import TINY, tiny
from tests.data.samples import binary
from tests.train import torchrun
from tests.train.conftest import default_double
from torch import nn

from torchadder import files
from torchadder.cli import main
from torchadder.data import Split
from torchadder.data import registry as datasets
from torchadder.errors import UserError
from torchadder.models import registry
from torchadder.models.resnet import BasicBlock, ResNet
from torchadder.train import RECIPES, Progress, Run, train
from torchadder.train import loop as loop_module
from torchadder.train.distributed import ALONE, joined

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")

# a network and images for the comparisons in float64, in which the adder layers have only the reference, which is slow
SMALL = dataclasses.replace(TINY, model="small", epochs=2)


def small_network(layers, num_classes, in_chans):
    stem = nn.Conv2d(in_chans, 4, 3, padding=1, bias=False)
    return ResNet(layers, BasicBlock, stem, (1, 1), num_classes, pool=nn.Identity(), bias=False)


def small_images(data_dir=None):
    """Return the tiny data set with images of 8x8 pixels."""
    whole = tiny()
    train, test = (Split(split.pixels[..., :8, :8].contiguous(), split.labels) for split in (whole.train, whole.test))
    return dataclasses.replace(whole, train=train, test=test)


SMALL_NETWORK = registry.Builder(small_network, 10, 1, (8, 8))


def in_this_process(load=tiny):
    """Register a data set as "tiny", with its recipe, for the rest of the life of this process."""
    datasets._DATASETS["tiny"] = load
    registry._MODELS["small"] = SMALL_NETWORK
    RECIPES[TINY.name] = TINY


# the numbers of one process, in float64: training enlarges a rounding about 1e5 times in nine steps, by an amount that
# depends on the machine. It stays below 1e-9 here, and a wrong share, mean or statistic is far above.

# Normalised over all processes, all numbers are those of one process. This does not hold for a binary network, whose
# sums of signs are integers: where one equals the mean of its channel, the last bit of the mean decides between +1
# and -1.
TOGETHER = {
    "adder": {},
    "conv": {"op": "conv"},
    "average": {"ema": 0.8, "clip_grad": 0.1, "label_smoothing": 0.1},
    "statistics": {"norm_batches": 2},
    "channels last": {"op": "conv", "channels_last": True},
    "taught": {"teacher": "small", "progressive": True},
}
APART = {  # each share by itself: the weights are those of one process that takes each batch in as many parts
    "adder apart": {},
    "binary apart": {"op": "binary"},
    "two parts each": {"accumulate": 2},
}


def recipe_of(name):
    changes = {**TOGETHER[name], "sync_bn": True} if name in TOGETHER else APART[name]
    return dataclasses.replace(SMALL, **changes)


class StopInTheSecondEpoch(Progress):
    def stepped(self, epoch, step, loss):
        if epoch == 2:
            raise KeyboardInterrupt


def train_in_two(folder):
    in_this_process(small_images)
    with default_double(), joined() as processes:
        for name in [*TOGETHER, *APART]:
            run = processes.open(lambda: Run.open(folder / name, recipe_of(name)))  # noqa: B023
            outcome = train(run, processes=processes)
            weights = b"".join(tensor.numpy().tobytes() for tensor in run.state["model"].values())
            result = dataclasses.replace(outcome, seconds=0)
            everywhere = processes.gather((hashlib.sha256(weights).hexdigest(), dataclasses.asdict(result)))
            assert everywhere[0] == everywhere[1]


def train_to_the_second_epoch(folder):
    with default_double(), contextlib.suppress(KeyboardInterrupt, UserError), joined() as processes:
        run = processes.open(lambda: Run.open(folder / "interrupted", recipe_of("adder")))
        train(run, progress=StopInTheSecondEpoch() if processes.first else None, processes=processes)


def train_by_command(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(arguments(folder, folder / "command")) == 0


@pytest.fixture(scope="module")
def two(made_once):
    """Run everything that two processes do without an error: a folder of runs."""

    def make(folder):
        write_images(folder / "cifar-10-batches-bin")
        torchrun.run_together([train_in_two, train_to_the_second_epoch, train_by_command], folder)

    return made_once("two-processes", make)


@pytest.fixture
def one(tmp_path, monkeypatch, tiny_recipe, one_thread, double_precision):
    """Train a recipe in this process: recipe -> the folder of the run."""
    monkeypatch.setitem(datasets._DATASETS, "tiny", small_images)
    monkeypatch.setitem(registry._MODELS, "small", SMALL_NETWORK)

    def start(recipe):
        train(Run.open(tmp_path / "one", recipe))
        return tmp_path / "one"

    return start


def numbers(folder):
    """Read the lines of metrics.jsonl, without times and memory, and the state of the model in last.pt."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy")
    state = torch.load(folder / "last.pt", weights_only=True)
    return [{name: row[name] for name in kept} for row in rows], state["model"]


def assert_close(found, expected):
    """Compare each tensor to 1e-9 of its largest number."""
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9 * tensor.abs().max().item(), msg=name)


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_reproduce_one(two, one, name):
    rows, state = numbers(one(recipe_of(name)))
    found_rows, found_state = numbers(two / name)
    assert found_rows == [pytest.approx(row, rel=1e-9) for row in rows]
    assert_close(found_state, state)
    assert json.loads((two / name / "environment.json").read_text())["processes"] == 2


@pytest.mark.parametrize("name", APART)
def test_normalised_apart_they_take_the_steps_of_one_with_parts(two, one, name):
    recipe = recipe_of(name)
    rows, state = numbers(one(dataclasses.replace(recipe, accumulate=2 * recipe.accumulate)))
    found_rows, found_state = numbers(two / name)
    trained = ("train_loss", "train_accuracy")  # tests depend on running statistics, which are an average of both
    for row, found in zip(rows, found_rows, strict=True):
        assert [found[key] for key in trained] == pytest.approx([row[key] for key in trained], rel=1e-9)
    assert_close(found_state, {key: tensor for key, tensor in state.items() if "weight" in key or "bias" in key})


@pytest.mark.usefixtures("one")
def test_one_process_continues_what_two_began(two):
    train(Run.open(two / "interrupted", recipe_of("adder"), resume=True))
    rows, state = numbers(two / "adder")
    found_rows, found_state = numbers(two / "interrupted")
    assert found_rows == [pytest.approx(row, rel=1e-9) for row in rows]
    assert_close(found_state, state)
    environment = json.loads((two / "interrupted" / "environment.json").read_text())
    (resumed,) = environment["resumed"]
    assert (environment["processes"], resumed["processes"], resumed["after_epoch"]) == (2, 1, 1)


# errors


def missing_for(rank):
    def load(data_dir):
        if os.environ["RANK"] == rank:
            raise UserError("no images here")
        return tiny()

    return load


def not_a_number(data_dir):
    """Put a NaN into an image of the second process's share of the first batch."""
    dataset = tiny()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    dataset.train.pixels[order[12], 0, 3, 3] = torch.nan
    return dataset


def disk_full(path, data, write=files.write_bytes):
    if path.name == "last.pt":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(path, data)


def failing(rank, error, *text):
    def forward_backward(*arguments, compute=loop_module.forward_backward):
        if os.environ["RANK"] == rank:
            raise error(*text)
        return compute(*arguments)

    return {(loop_module, "forward_backward"): forward_backward}


BUG, STOP = failing("1", ValueError, "a bug of ours"), failing("0", KeyboardInterrupt)

ERRORS = {  # name -> data set, flags, replaced functions, part of the line, exit code of the process that prints it
    "unknown value": (tiny, ["--op", "none"], {}, "--op none is out of range: expected adder, conv or binary", 2),
    "unknown flag": (tiny, ["--spam"], {}, "No such option: --spam", 2),
    "data missing": (missing_for("0"), [], {}, "no images here", 2),
    "data missing for the other": (missing_for("1"), [], {}, "no images here", 2),
    "uneven shares": (tiny, ["--batch-size", "15"], {}, "cannot be shared evenly by 2 processes", 2),
    "parts too small": (tiny, ["--batch-size", "16", "--accumulate", "8"], {}, "expected at least 32", 2),
    "run exists": (tiny, ["--out", "."], {}, ". already holds a run, without a finished epoch: delete it", 2),
    "nothing to resume": (tiny, ["--resume"], {}, "holds no run to resume", 2),
    "not finite": (not_a_number, [], {}, "numbers in epoch 1, first in the images: check the data", 2),
    "not finite together": (not_a_number, ["--sync-bn"], {}, "epoch 1, first in the images: check the data", 2),
    "disk full": (tiny, [], {(files, "write_bytes"): disk_full}, "No space left on device", 2),
    "a bug": (tiny, [], BUG, "unexpected ValueError: a bug of ours; run again with --debug", 1),
    "interrupted": (tiny, [], STOP, "0/2 epochs are saved, continue with the same command and --resume", 130),
}


def threads_of_gloo():
    """Count the threads of process groups that are not yet freed (Linux names them)."""
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))


def fail(name, folder):
    load, flags, replaced, _, _ = ERRORS[name]
    in_this_process(load)
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for (module, attribute), value in replaced.items():
            patch.setattr(module, attribute, value)
        patch.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["train", TINY.name, "--epochs", "2", "--no-report", "--out", name, *flags])
    assert not dist.is_initialized()
    assert threads_of_gloo() == 0
    told = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
    (folder / f"{name}-{os.environ['RANK']}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def failed(made_once):
    def make(folder):
        (folder / "recipe.json").write_text(TINY.to_json())
        torchrun.run_together([partial(fail, name) for name in ERRORS], folder)

    return made_once("failing-processes", make)


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_ends_both_with_one_line(failed, name):
    *_, line, code = ERRORS[name]
    told = [json.loads((failed / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    (teller,) = (each for each in told if each["err"])
    assert teller["err"].startswith("error: ")
    assert teller["err"].count("\n") == 1
    assert line in teller["err"]
    assert teller["code"] == code
    assert all(each["code"] in (1, 2, 130) for each in told)
    assert told[1]["out"] == ""


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    expected = (
        r"2 GPUs cannot serve more processes: start at most 2 on this machine \(torchrun --nproc-per-node N\), or set"
    )
    with pytest.raises(UserError, match=expected), joined():
        pass


def test_without_torchrun_nothing_is_joined():
    with joined() as processes:
        assert processes == ALONE
        assert not dist.is_initialized()


def test_without_torchrun_the_first_gpu_is_taken(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with joined() as processes:
        assert processes.device == torch.device("cuda", 0)
    assert chosen == [0]


@pytest.fixture
def restarting(tiny_recipe, one_thread, monkeypatch):
    """Set the environment of one process that torchrun --max-restarts 1 starts."""
    for name, value in {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")


def test_with_restarts_a_run_is_continued_whatever_there_is_of_it(restarting, tmp_path, capsys):
    command = ["train", TINY.name, "--out", str(tmp_path / "run"), "--epochs", "2", "--no-report"]
    assert main(command) == 0  # begins
    (tmp_path / "run" / "last.pt").unlink()
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    assert main(command) == 0  # begins again: killed before the first last.pt
    assert main(command) == 0
    assert "run is finished: all 2 epochs are done" in capsys.readouterr().out
    assert not dist.is_initialized()
    assert main([*command[:-2], "3", "--no-report"]) == 2
    assert "with another recipe: epochs (run: 2, now: 3)" in capsys.readouterr().err


def test_the_folder_is_another_one_on_another_machine(tmp_path):
    with pytest.raises(UserError, match="is not the same for all processes: choose a folder that all machines share"):
        Run.follow(tmp_path, TINY, 3)


# started by torchrun itself

DYING = """
import os, signal, sys
from torchadder.cli import main
from torchadder.train import loop
compute, steps = loop.forward_backward, 0
def forward_backward(*arguments):
    global steps
    steps += 1
    if steps == 8 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return compute(*arguments)
loop.forward_backward = forward_backward
sys.exit(main())
"""  # an epoch has five steps


def write_images(folder):
    """Write 80 training and 30 test images that can be learned, in the format of CIFAR-10."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (10, 3072))
    folder.mkdir()
    for name, count in [*((f"data_batch_{i}.bin", 16) for i in range(1, 6)), ("test_batch.bin", 30)]:
        labels = rng.integers(0, 10, count, np.uint8)
        images = np.clip(centres[labels] + rng.normal(0, 60, (count, 3072)), 0, 255).astype(np.uint8)
        (folder / name).write_bytes(binary(images, labels))


def arguments(folder, out):
    flags = ["--dataset", "cifar10", "--partial", "--augment", "--batch-size", "16", "--epochs", "3", "--sync-bn"]
    return [
        "train",
        "lenet5bn-mnist",
        *flags,
        "--no-report",
        "--data",
        str(folder / "cifar-10-batches-bin"),
        "--out",
        str(out),
    ]


def test_kill_9_costs_the_epoch_at_most(two, tmp_path):
    """torchrun starts the group again, which continues from the last checkpoint to the bits of an uninterrupted run."""
    write_images(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "dying.py").write_text(DYING)
    command = torchrun.command("dying.py", *arguments(tmp_path, "killed"), "--json", restarts=1)
    paths = os.pathsep.join(str(Path(root).resolve()) for root in sys.path if root)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 3  # one object: one process prints
    assert "1 thread in each of 2 processes" in done.stderr
    assert "continues after epoch 1" in done.stderr
    assert numbers(tmp_path / "killed")[0] == numbers(two / "command")[0]
    killed, whole = (torch.load(path / "last.pt", weights_only=True) for path in (tmp_path / "killed", two / "command"))
    for part in ("model", "optimizer", "batches", "rng", "epoch", "best"):
        torch.testing.assert_close(killed[part], whole[part], rtol=0, atol=0)
    environment = json.loads((tmp_path / "killed" / "environment.json").read_text())
    assert [(each["after_epoch"], each["processes"]) for each in environment["resumed"]] == [(1, 2)]
