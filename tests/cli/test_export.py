"""Test torchadder export: what it writes and prints, and what it refuses."""

from pathlib import Path

import pytest

from torchadder.cli import main


def test_it_says_what_it_wrote(folder, capsys):
    assert main(["export", "run.tadder", "--to", "c", "-o", "net", "--name", "digits"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("net/digits.c  6")
    assert " bytes of constant tables, " in out
    assert "digits_input_from_pixels" in Path("net/digits.h").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run.tadder", "--to", "java"], "--to java: expected c"),
        (["run.tadder", "--to", "c", "--name", "a b"], "--name 'a b': expected letters"),
        (["run.tadder", "--to", "c", "--max-flash", "1000"], "--max-flash 1000: the network needs "),
        (["run.tadder", "--to", "c", "--max-ram", "1000"], "--max-ram 1000: the network needs "),
        (["nowhere.tadder", "--to", "c"], "cannot read nowhere.tadder"),
        (["run.tadder", "--to", "c", "-o", "."], "--out .: holds other files (run, run.tadder)"),
    ],
)
def test_refused(folder, refused, arguments, words):
    assert words in refused(["export", "-o", "net", *arguments])
    assert not Path("net").exists()
