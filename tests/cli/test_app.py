"""Test the command line as a whole: verbs, help without torch, messages in flags, missing libraries."""

import io
import re
import subprocess
import sys

import pytest

from torchadder.cli import main, options
from torchadder.cli.app import commands, with_flags
from torchadder.data import list_datasets
from torchadder.lab.figures import FIGURES
from torchadder.lab.reproduce import EXPERIMENTS
from torchadder.models import list_models
from torchadder.models.registry import OPS
from torchadder.quant.calibration import METHODS
from torchadder.quant.file import SUFFIX
from torchadder.train import recipe
from torchadder.version import __version__

VERBS = (
    *("train", "eval", "quantize", "predict", "demo", "report", "figures"),
    *("reproduce", "summary", "bench", "doctor"),
)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"torchadder {__version__}\n"


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_help_names_every_verb(capsys, arguments, code):
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert all(f" {verb} " in out for verb in VERBS)
    assert "error" not in err


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")


def leaves(group, path=()):
    for name, command in group.commands.items():
        yield from leaves(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]


LEAVES = list(leaves(commands()))


IMPORTS_NO_TORCH = """
import sys
from torchadder.cli import main
codes = [main(arguments.split()) for arguments in sys.argv[1:]]
sys.exit(f"codes {codes}, torch {'torch' in sys.modules}")
"""


def test_help_and_typing_errors_do_not_import_torch():
    helps = [f"{' '.join(path)} --help" for path, _ in LEAVES]
    arguments = ["--version", "--help", *helps, "train --epoch 3", "train lenet-mnist"]
    done = subprocess.run([sys.executable, "-c", IMPORTS_NO_TORCH, *arguments], capture_output=True, text=True)
    codes = [0] * (len(arguments) - 2) + [2, 2]
    assert done.stderr.splitlines()[-1] == f"codes {codes}, torch False"


@pytest.mark.parametrize(
    ("shown", "known"),
    [
        (options.MODELS, list_models()),
        (options.OPS, OPS),
        (options.DATASETS, [name for name in list_datasets() if name != "tiny"]),
        (options.METHODS, METHODS),
        (options.FIGURES, FIGURES),
        (options.TABLES, EXPERIMENTS),
        ([options.SUFFIX], [SUFFIX]),
    ],
)
def test_names_in_help_are_those_of_the_library(shown, known):
    assert list(shown) == list(known)


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_help_of_every_verb_keeps_its_brackets(capsys, wide, path, command):
    brackets = {found for owner in (command, *command.params) for found in re.findall(r"\\(\[.*?\])", owner.help or "")}
    assert main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"torchadder {' '.join(path)}" in out
    assert all(bracket in out for bracket in brackets)
    if path == ("train",):
        assert "[report]" in brackets


def test_train_help_has_every_option_of_a_recipe(capsys, wide):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for option in recipe.options():
        assert f"--{option.name.replace('_', '-')} " in out
        assert option.metadata["help"].split()[0] in out


@pytest.mark.parametrize(
    ("verb", "message", "expected"),
    [
        ("train", "epochs=0 is out of range: expected at least 1", "--epochs 0 is out of range: expected at least 1"),
        ("train", "batch_size=51 is too large", "--batch-size 51 is too large"),
        ("train", "put it there, or pass data_dir=DIR.", "put it there, or pass --data DIR."),
        ("train", "out=runs/a.b: no folder", "--out runs/a.b: no folder"),
        ("train", "choose another out=DIR (now out=a), op='xor'", "choose another --out DIR (now --out a), --op xor"),
        ("train", "recenter=True needs nesterov=False; partial=True.", "--recenter needs --no-nesterov; --partial."),
        ("train", "dataset='a b' is unknown", "--dataset 'a b' is unknown"),
        ("train", "recipe=lenet is unknown", "lenet is unknown"),
        ("train", "method=kl: no parameter of train", "method=kl: no parameter of train"),
        ("train", "TORCHADDER_ISA=avx9, x.epochs=2, epochs=", "TORCHADDER_ISA=avx9, x.epochs=2, epochs="),
        ("quantize", "bits=9 is out of range", "--bits 9 is out of range"),
        ("summary", "model=lenet6: unknown, op=x too", "lenet6: unknown, --op x too"),
    ],
)
def test_parameters_in_messages_become_flags(verb, message, expected):
    assert with_flags(message, commands().commands[verb].params) == expected


@pytest.mark.parametrize(
    ("arguments", "name"), [(["--out", ""], "--out"), (["--out="], "--out"), ([""], "an argument")]
)
def test_an_empty_argument_is_refused(capsys, arguments, name):
    assert main(["train", "lenet5bn-mnist", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {name} is empty: give it a value, or leave it out\n"


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("quantize", "--bits", "91"),
        ("export", "--max-ram", "16k"),
        ("eval", "--threads", "-7"),
        ("train", "--lr", "abc"),
    ],
)
def test_a_value_of_another_type_or_range_is_named(refused, verb, option, value):
    line = refused([verb, "x", option, value])
    assert f"'{option}'" in line
    assert value in line
    assert line.endswith(f": see torchadder {verb} --help\n")


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_libraries_it_says_what_to_install(capsys, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["--version"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert 'pip install "torchadder[cli]"' in err


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_no_character_ends_a_command(encoding, monkeypatch):
    """Write characters that the terminal lacks, and the name of a file that is no UTF-8, as replacements."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("torchadder.cli.app.commands", lambda: lambda *args, **kwargs: print("a·b", "日", "\udcff"))
    assert main([]) == 0
    middle = "?" if encoding == "ascii" else "·"
    assert stream.buffer.getvalue().decode(encoding) == f"a{middle}b {'日' if encoding == 'utf-8' else '?'} ?\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "No", "/dev/x")])
def test_the_system_refuses(error, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchadder.cli.app.commands", lambda: full)
    monkeypatch.setattr("torchadder.cli.app._parameters", lambda *args: [])
    assert main([]) == 2
    assert re.fullmatch(r"error: No[^:\n]*: \S[^\n]*\n", capsys.readouterr().err)


def test_closed_pipe_is_no_error(monkeypatch, capsys):
    def gone(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr("torchadder.cli.app.commands", lambda: gone)
    monkeypatch.setattr("torchadder.cli.app.os.dup2", lambda *args: None)
    assert main(["--version"]) == 1
    assert capsys.readouterr() == ("", "")
