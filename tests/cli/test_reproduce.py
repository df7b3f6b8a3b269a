"""Test torchadder reproduce: output, exit codes, Ctrl-C, and the same command again."""

import io
import json
import re
from pathlib import Path

import pytest

from torchadder.cli import main
from torchadder.cli.console import Bar
from torchadder.cli.reproduce import _Lines
from torchadder.data import registry as datasets
from torchadder.errors import UserError
from torchadder.lab.reproduce import EXPERIMENTS, Experiment, Row, queue

REPRODUCE = ["reproduce", "tiny", "--seeds", "1"]


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    rows = (
        Row("CNN", "lenet5bn-tiny", {"op": "conv", "epochs": 2}, 90.0),
        Row("AdderNet", "lenet5bn-tiny", {"op": "adder", "epochs": 2}),
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(EXPERIMENTS, "tiny", Experiment("tiny", "Tiny digits", rows, seeds=2))


def missing(data_dir):
    raise UserError(f"no tiny data in {data_dir}: put them there")


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setitem(datasets._DATASETS, "tiny", missing)


OUTPUT = r"""1/4  CNN, seed 0  \d+\.\d\d% after 2 epochs  0:\d\d
2/4  AdderNet, seed 0  \d+\.\d\d% after 2 epochs  0:\d\d
3/4  CNN, seed 1  \d+\.\d\d% after 2 epochs  0:\d\d
4/4  AdderNet, seed 1  \d+\.\d\d% after 2 epochs  0:\d\d

Tiny digits

network +accuracy, %  paper, % +gap  seeds  epochs
CNN +\d+\.\d\d ± \d+\.\d\d +90\.00 +[+-]\d+\.\d\d      2       2
AdderNet +\d+\.\d\d ± \d+\.\d\d +– +–      2       2

network   minutes  s an epoch  images/s  peak MiB  threads
CNN +0\.0 +\d\.\d +[\d,]+ +[\d,]+        1
AdderNet +0\.0 +\d\.\d +[\d,]+ +[\d,]+        1

written to results/reproduce-tiny\.json
"""


def test_one_line_a_run_and_the_table(capsys):
    assert main(["reproduce", "tiny"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(OUTPUT, out), out
    assert err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_for_the_run_that_is_going(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream, runs = Terminal(), queue.Queue(EXPERIMENTS["tiny"], seeds=1)
    with Bar(stream, transient=True) as bar:
        runs.run(report=_Lines(bar, 2))
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()))
    assert any(
        re.fullmatch(r"2/2  AdderNet, seed 0 ━+ epoch 2/2    test [\d.]+%  [\d.]+ s\s*", frame) for frame in frames
    )
    assert any(re.fullmatch(r"2/2  AdderNet, seed 0  [\d.]+% after 2 epochs  0:\d\d", frame) for frame in frames)
    assert max(map(len, frames)) <= 80


def test_shortened_is_named_so(capsys):
    assert main([*REPRODUCE, "--epochs", "1", "--only", "cnn"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1/1  CNN, seed 0  ")
    assert "\nTiny digits, shortened to 1 of 2 epochs\n" in out
    assert re.search(r"^CNN .* 1  1 of 2$", out, re.MULTILINE)
    assert re.search(r"^AdderNet  not run here", out, re.MULTILINE)
    assert out.endswith("written to runs/reproduce/epochs-1/reproduce-tiny-epochs-1.json\n")


def test_again_nothing_is_run(capsys):
    arguments = [*REPRODUCE, "--epochs", "1"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    record = Path("runs/reproduce/epochs-1/reproduce-tiny-epochs-1.json")
    before = record.read_bytes()
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert again == re.sub(r"(0:\d\d)$", r"\1  finished earlier", first, flags=re.MULTILINE)
    assert record.read_bytes() == before


def test_json_is_one_object_on_stdout(capsys):
    assert main([*REPRODUCE, "--epochs", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("1/2  CNN, seed 0  ")
    printed = json.loads(out)
    assert {name: printed[name] for name in ("table", "title", "shortened", "record")} == {
        **{"table": "tiny", "title": "Tiny digits", "shortened": {"epochs": 1, "of": 2}},
        "record": "runs/reproduce/epochs-1/reproduce-tiny-epochs-1.json",
    }
    cnn, adder = printed["rows"]
    assert (cnn["label"], cnn["n"], cnn["seeds"], cnn["epochs"], cnn["std"]) == ("CNN", 1, [0], 1, None)
    assert cnn["gap"] == pytest.approx(cnn["mean"] - 90, abs=0.01)
    assert (adder["paper"], adder["gap"], adder["reason"], cnn["reason"]) == (None, None, None, None)


def test_missing_data_is_named_for_every_row(capsys, no_data, tmp_path):
    assert main(["reproduce", "tiny", "--data", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[:2] == [
        f"1/4  CNN  not run here (no tiny data in {tmp_path}: put them there)",
        "2/4  AdderNet  not run here (as above)",
    ]
    assert re.search(r"^CNN       not run here     90.00    –      –       –$", out, re.MULTILINE)
    assert "minutes" not in out
    assert out.endswith("no run is finished: nothing written\n")
    assert err == ""


def test_missing_data_as_json(capsys, no_data):
    assert main([*REPRODUCE, "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert [(row["label"], row["mean"], row["reason"]) for row in printed["rows"]] == [
        (label, None, "no tiny data in None: put them there") for label in ("CNN", "AdderNet")
    ]
    assert printed["record"] is None


@pytest.mark.parametrize(
    ("flags", "command"),
    [
        ([], "torchadder reproduce tiny --seeds 1"),
        (
            ["--epochs", "2", "--only", "a d", "--out", "there", "--results", "here", "--data", ".", "--json"],
            "torchadder reproduce tiny --epochs 2 --seeds 1 --only 'a d' --data . --out there --results here --json",
        ),
    ],
)
def test_ctrl_c_says_how_to_continue(capsys, monkeypatch, flags, command):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(queue.Queue, "run", interrupted)
    monkeypatch.setitem(EXPERIMENTS, "tiny", Experiment("tiny", "", (Row("a d", "lenet5bn-tiny", {"epochs": 2}),), 1))
    assert main([*REPRODUCE, *flags]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: interrupted; what is saved is kept, continue with: {command}\n")


USER_ERRORS = [  # arguments -> the words that the line must contain
    (["reproduce"], "Missing argument 'TABLE': see torchadder reproduce --help"),
    (["reproduce", "minst"], "minst is unknown: expected one of mnist, fashion_mnist, "),
    ([*REPRODUCE, "--only", "BNN"], "BNN matches no row of tiny: its rows are CNN, AdderNet"),
    ([*REPRODUCE, "--epochs", "0"], "0 is out of range: expected 1 to 2, the epochs of the full recipe"),
    ([*REPRODUCE, "--epochs", "3"], "3 is out of range: expected 1 to 2, the epochs of the full recipe"),
    (["reproduce", "tiny", "--seeds", "0"], "'--seeds'"),
    ([*REPRODUCE, "--results", "file"], "--results file/reproduce-tiny.json: file is no folder"),
]


@pytest.mark.parametrize(("arguments", "words"), USER_ERRORS)
def test_users_mistake_is_one_line_and_exit_code_2(refused, tmp_path, arguments, words):
    (tmp_path / "file").write_text("")
    assert words in refused(arguments)


def test_runs_that_cannot_be_written_are_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main([*REPRODUCE, "--out", "file", "--epochs", "1", "--results", "."]) == 2
    out = capsys.readouterr().out
    assert out.startswith("1/2  CNN, seed 0  not run here (")
    assert "file/epochs-1" in out


def test_torchrun_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("torchadder.train.distributed.several", lambda: True)
    assert main(REPRODUCE) == 2
    assert "without torchrun" in capsys.readouterr().err


def test_help_names_the_tables_and_the_defaults(capsys):
    assert main(["reproduce", "--help"]) == 0
    out = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "One of: mnist, fashion_mnist, ablation, eta, " in out
    assert "[default: runs/reproduce]" in out
