"""Test torchadder report: where the page goes, what is printed, the line of every mistake."""

import os
import shutil
import webbrowser
from pathlib import Path

import pytest

from torchadder.cli import main


def test_the_page_of_a_run_goes_into_the_run(folder, capsys, monkeypatch):
    shutil.copytree("run", "own")
    shutil.copy("run.tadder", "own")
    shown = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    assert main(["report", "own", "--open"]) == 0
    (line,), err = (text.splitlines() for text in capsys.readouterr())
    assert line.startswith("own/report.html · ")
    assert err == []
    page = Path("own/report.html")
    assert shown == [page.resolve().as_uri()]
    assert "run.tadder" in page.read_text()


def test_the_page_of_several_lies_here_and_what_it_lacks_is_printed(folder, capsys):
    shutil.copytree("run", "again")
    assert main(["report", "run", "again", "--no-test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in lines[:4]] == [
        *("no confusion matrix, no accuracy by class and no mistakes", "no 8-bit accuracy and latency") * 2
    ]
    assert lines[4].startswith("report.html · ")
    assert "2 runs compared" in Path("report.html").read_text()


def test_a_program_elsewhere_is_named(folder):
    assert main(["report", "run", "-o", "page.html", "--program", "run.tadder"]) == 0
    assert "run.tadder" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none holds no run"),
        (["run", "none"], "none holds no run"),
        (["unfinished"], "unfinished has no checkpoint (last.pt)"),
        (["damaged"], "damaged/last.pt is a text that begins with 'damaged', not a checkpoint"),
        (["unmeasured"], "unmeasured has a checkpoint and no metrics"),
        (["foreign"], "cannot read foreign/recipe.json: no recipe of this version"),
        (["run", "run"], "run is named twice"),
        (["run", "-o", "page.txt"], "expected a name that ends in .html"),
        (["run", "-o", "none/page.html"], "none is no folder; create it first"),
        (["run", "--program", "none.tadder"], "cannot read none.tadder"),
        (["run", "--program", "run/config.json"], "run/config.json is not a valid program"),
        (["run", "again", "--program", "run.tadder"], "run.tadder belongs to one run, got 2"),
    ],
)
def test_a_mistake_is_one_line(folder, refused, arguments, message):
    for name in ("unfinished", "damaged", "unmeasured", "foreign", "again"):
        shutil.copytree("run", name)
    os.remove("unfinished/last.pt")
    Path("damaged/last.pt").write_bytes(b"damaged")
    os.remove("unmeasured/metrics.jsonl")
    Path("foreign/recipe.json").write_text('{"name": "x"}')
    assert message in refused(["report", "-o", "page.html", *arguments])
    assert not Path("page.html").exists()
