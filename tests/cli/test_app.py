"""The command line as a whole: verbs, help, version, and what is said without its libraries."""

import sys

import pytest

from torchadder.cli import main
from torchadder.train.recipe import options
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


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help(capsys, verb):
    assert main([verb, "--help"]) == 0
    assert f"torchadder {verb}" in capsys.readouterr().out


def test_train_help_has_every_option_of_a_recipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for option in options():
        assert f"--{option.name.replace('_', '-')} " in out
        assert option.metadata["help"].split()[0] in out


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_libraries_it_says_what_to_install(capsys, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["--version"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert 'pip install "torchadder[cli]"' in err


def test_reader_that_went_away_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr("torchadder.cli.app._version", lambda wanted: None)

    def gone(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr("torchadder.cli.app.app", gone)
    monkeypatch.setattr("torchadder.cli.app.os.dup2", lambda *args: None)
    assert main(["--version"]) == 1
    assert capsys.readouterr() == ("", "")
