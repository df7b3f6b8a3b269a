"""Test the run directory: its files, and that a run that was killed anywhere continues to the same numbers."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from tests.conftest import TINY, tiny

from torchadder import files
from torchadder.data import registry as datasets
from torchadder.errors import UserError
from torchadder.models.checkpoint import load_checkpoint
from torchadder.train import Progress, Run, get_recipe, train

FILES = {"recipe.json", "environment.json", "metrics.jsonl", "last.pt", "best.safetensors", "config.json"}
CLOCKS = {"seconds", "images_per_second", "peak_rss_mib"}


class Stop(BaseException):
    """End the process like a kill: nothing catches it."""


class StopAt(Progress):
    """End training at a step of an epoch."""

    def __init__(self, epoch, step):
        self.at = (epoch, step)

    def stepped(self, epoch, step, loss):
        if (epoch, step) == self.at:
            raise Stop


def start(folder, recipe, *, resume=False, progress=None):
    run = Run.open(folder, recipe, resume=resume)
    train(run, progress=progress)
    return run


def numbers(folder):
    """Read the parts of a run that must not depend on its interruptions."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["seconds"]
    teacher = (state["distiller"] or {}).pop("digest", None)  # a text, which assert_close does not take
    return rows, state, teacher, state.pop("checkpoint"), (folder / "best.safetensors").read_bytes()


def assert_same(one, other):
    """Check that two runs are equal to the last bit."""
    assert (one[0], *one[2:]) == (other[0], *other[2:])
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Train for three epochs without interruption."""
    folder, threads = tmp_path_factory.mktemp("whole") / "run", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets._DATASETS, "tiny", tiny)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        torch.set_num_threads(1)
        start(folder, TINY)
        torch.set_num_threads(threads)
    return folder


def test_what_a_run_leaves(whole, tiny_recipe):
    assert {path.name for path in whole.iterdir()} == FILES
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert set(rows[0]) - CLOCKS == {
        "epoch",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "test_top5_accuracy",
        "lr",
    }
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert 0 < rows[-1]["lr"] < rows[0]["lr"] < 0.1
    environment = json.loads((whole / "environment.json").read_text())
    assert {"torchadder", "torch", "python", "threads", "kernels", "command"} <= set(environment)
    best = max(rows, key=lambda row: row["test_accuracy"])
    config = json.loads((whole / "config.json").read_text())
    assert (config["epoch"], config["accuracy"]) == (best["epoch"], best["test_accuracy"])
    outcome = Run.open(whole, tiny_recipe, resume=True).outcome()
    assert outcome.accuracy == rows[-1]["test_accuracy"]
    assert outcome.best_accuracy == best["test_accuracy"]


def test_same_seed_same_numbers_other_seed_others(whole, tiny_recipe, tmp_path):
    start(tmp_path / "again", tiny_recipe)
    assert_same(numbers(whole), numbers(tmp_path / "again"))
    start(tmp_path / "other", dataclasses.replace(tiny_recipe, seed=1))
    assert numbers(tmp_path / "other")[0] != numbers(whole)[0]


@pytest.mark.parametrize("stops", [[1], [2, 3]])
def test_stopped_inside_epochs_continues_to_the_same_numbers(whole, tiny_recipe, tmp_path, stops):
    for epoch in stops:
        with pytest.raises(Stop):
            start(tmp_path / "run", tiny_recipe, progress=StopAt(epoch, 3), resume=epoch > stops[0])
        torch.manual_seed(99)  # as in another process, which has only the folder of the first
    start(tmp_path / "run", tiny_recipe, resume=True)
    assert_same(numbers(whole), numbers(tmp_path / "run"))
    resumed = json.loads((tmp_path / "run/environment.json").read_text())["resumed"]
    assert [begin["after_epoch"] for begin in resumed] == [epoch - 1 for epoch in stops]


CHANGES = [
    {"lr_scheme": "ilr", "ilr_factor": 3.0},
    {"lr_scheme": "plain", "clip_grad": 0.1},
    {"op": "conv", "precision": "bf16"},
    {"op": "conv", "optimizer": "adam", "lr": 0.001, "schedule": "polynomial", "power": 2.0},
    {"ema": 0.8, "warmup_epochs": 1},
    {"accumulate": 3, "label_smoothing": 0.1, "clip_grad": 0.1, "deterministic": True},
    {"schedule": "step", "milestones": "1", "ema": 0.5},
    {"norm_batches": 2},
]


def assert_continues_exactly(recipe, folder):
    """Check that a run of two epochs that stops in its second one and continues has the bits of an unbroken one."""
    recipe = dataclasses.replace(recipe, epochs=2)
    start(folder / "whole", recipe)
    with pytest.raises(Stop):
        start(folder / "run", recipe, progress=StopAt(2, 3))
    torch.manual_seed(99)
    start(folder / "run", recipe, resume=True)
    assert_same(numbers(folder / "whole"), numbers(folder / "run"))


@pytest.mark.parametrize(("threads", "change"), [(2, {}), *((1, change) for change in CHANGES)])
def test_other_recipes_continue_exactly(tiny_recipe, tmp_path, threads, change):
    torch.set_num_threads(threads)
    assert_continues_exactly(dataclasses.replace(tiny_recipe, **change), tmp_path)


def test_an_older_versions_run_continues_exactly(whole, tiny_recipe, tmp_path):
    """Its recipe.json has no field that came later, its last.pt no weights beside an average."""
    with pytest.raises(Stop):
        start(tmp_path / "run", tiny_recipe, progress=StopAt(2, 3))
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    newer = "accumulate augment partial on_error optimizer clip_grad label_smoothing ema schedule power milestones"
    for name in [*newer.split(), "warmup_epochs", "deterministic"]:
        del recipe[name]
    (tmp_path / "run/recipe.json").write_text(json.dumps(recipe))
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)
    del state["trained"]
    torch.save(state, tmp_path / "run/last.pt")
    start(tmp_path / "run", tiny_recipe, resume=True)
    assert_same(numbers(whole), numbers(tmp_path / "run"))


@pytest.mark.parametrize("name", ["best.safetensors", "config.json", "last.pt"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_killed_between_two_writes(whole, tiny_recipe, tmp_path, monkeypatch, name, epoch):
    write, begun = files.write_bytes, []

    def write_until(path, data):
        begun.append(path.name)
        if begun.count("last.pt") >= epoch - 1 and path.name == name:
            raise Stop
        write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_bytes", write_until)
        with pytest.raises(Stop):
            start(tmp_path / "run", tiny_recipe)
    start(tmp_path / "run", tiny_recipe, resume=True)
    assert_same(numbers(whole), numbers(tmp_path / "run"))


TAILS = ["", '{"epoch": 3, "train_lo', "\n", '{"epoch": 3}\n{"epoch": 4}\n', "\x00\x00\xff", "[1]\n{}\n"]


@pytest.mark.parametrize("tail", TAILS)
def test_torn_metrics_are_mended(whole, tiny_recipe, tmp_path, tail):
    with pytest.raises(Stop):
        start(tmp_path / "run", tiny_recipe, progress=StopAt(3, 3))
    with open(tmp_path / "run/metrics.jsonl", "ab") as f:
        f.write(tail.encode("latin1"))
    start(tmp_path / "run", tiny_recipe, resume=True)
    assert_same(numbers(whole), numbers(tmp_path / "run"))


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors"])
def test_full_disk_keeps_the_last_checkpoint(whole, tiny_recipe, tmp_path, fill_disk, name):
    class FillDisk(Progress):
        def epoch_done(self, row):
            if row["epoch"] == 1:
                fill_disk(name)

    recipe = dataclasses.replace(tiny_recipe, epochs=3)
    with pytest.raises(UserError, match=r"No space left on device; the checkpoint of epoch [12] is intact") as caught:
        start(tmp_path / "run", recipe, progress=FillDisk())
    assert "\n" not in str(caught.value)
    load_checkpoint(tmp_path / "run")
    load_checkpoint(tmp_path / "run/last.pt")
    start(tmp_path / "run", recipe, resume=True)
    assert_same(numbers(whole), numbers(tmp_path / "run"))


def test_loss_that_is_not_finite_stops_with_a_line(tiny_recipe, tmp_path, monkeypatch):
    dataset = datasets._DATASETS["tiny"]()
    dataset.train.pixels[7, 0, 3, 3] = torch.nan
    monkeypatch.setitem(datasets._DATASETS, "tiny", lambda data_dir: dataset)
    recipe = dataclasses.replace(tiny_recipe, batch_size=50)
    with pytest.raises(UserError, match=r"NaN or infinite numbers in epoch 1, first in the images: check the data"):
        start(tmp_path / "run", recipe)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_finished_run_returns_its_outcome_at_once(whole, tiny_recipe):
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    run = Run.open(whole, tiny_recipe, resume=True)
    assert run.finished
    assert train(run) == run.outcome()
    assert before == {path.name: path.read_bytes() for path in whole.iterdir()}


def as_file(folder):
    folder.write_text("")


def as_run(folder):
    folder.mkdir()
    (folder / "recipe.json").write_text(get_recipe("lenet5bn-tiny").to_json())


def with_damaged_last(folder):
    as_run(folder)
    (folder / "last.pt").write_bytes(b"PK\x03\x04")


def without_last(folder):
    as_run(folder)
    (folder / "metrics.jsonl").write_text("{}\n{}\n")


def with_damaged_recipe(folder):
    folder.mkdir()
    (folder / "recipe.json").write_text('{"name": "x"')


def without_recipe(folder):
    folder.mkdir()
    (folder / "last.pt").write_bytes(b"")


REFUSED = [  # function that fills the folder, change to the recipe, resume -> words in the message
    (as_file, {}, True, "holds no run to resume"),
    (lambda folder: None, {}, True, "holds no run to resume: leave out resume=True"),
    (lambda folder: folder.mkdir(), {}, True, "holds no run to resume"),
    (as_run, {"op": "conv", "seed": 4}, True, r"op \(run: adder, now: conv\), seed \(run: 0, now: 4\)"),
    (with_damaged_last, {}, True, "last.pt is no checkpoint, damaged"),
    (without_last, {}, True, "has lost its last.pt and cannot continue: start a new run in another folder"),
    (with_damaged_recipe, {}, True, "no recipe of this version"),
    (without_recipe, {}, True, "cannot read .*recipe.json"),
]


@pytest.mark.parametrize(("prepare", "change", "resume", "words"), REFUSED)
def test_refused(tiny_recipe, tmp_path, prepare, change, resume, words):
    prepare(tmp_path / "run")
    with pytest.raises(UserError, match=words) as caught:
        Run.open(tmp_path / "run", dataclasses.replace(tiny_recipe, **change), resume=resume)
    assert "\n" not in str(caught.value)


HOLD = "import fcntl, sys; fcntl.lockf(f := open(sys.argv[1], 'r+'), fcntl.LOCK_EX); print(flush=True); input()"


def test_one_process_at_a_time_trains_in_a_folder(tiny_recipe, tmp_path):
    device = torch.device("cpu")
    first, second = (Run.open(tmp_path / "run", tiny_recipe) for _ in range(2))
    first.begin(device)
    first.close()
    with pytest.raises(UserError, match="holds a run that another process has begun"):
        second.begin(device)
    resumed = Run.open(tmp_path / "run", tiny_recipe, resume=True)
    command = [sys.executable, "-c", HOLD, tmp_path / "run" / "recipe.json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="is in use: another process trains it"):
            resumed.begin(device)
        other.communicate(b"\n")
    resumed.begin(device)
    resumed.close()


def test_nothing_is_written_before_the_data_is_there(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match="batch_size=51"):
        start(tmp_path / "run", dataclasses.replace(tiny_recipe, batch_size=51))
    assert not (tmp_path / "run").exists()


def test_channels_last_computes_the_same_loss(tiny_recipe, tmp_path):
    """One step, whose loss no update of the weights has changed yet: later steps enlarge the rounding."""
    recipe = dataclasses.replace(tiny_recipe, epochs=1, batch_size=50)
    start(tmp_path / "one", recipe)
    start(tmp_path / "other", dataclasses.replace(recipe, channels_last=True))
    one, other = (numbers(tmp_path / name)[0][0]["train_loss"] for name in ("one", "other"))
    assert one == pytest.approx(other, rel=1e-3)
