"""Test torchadder demo: the file that it writes, and what it refuses."""

import webbrowser
from pathlib import Path

import pytest
from tests.quant.random_programs import Maker

from torchadder.cli import main


def test_it_writes_a_page(folder, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert main(["demo"]) == 0
    size = Path("demo.html").stat().st_size
    assert capsys.readouterr().out == f"demo.html · {size / 1e3:.0f} kB: open it in a browser\n"
    assert main(["demo", "run.tadder", "-o", "run.html", "--open"]) == 0
    assert opened == [Path("run.html").resolve().as_uri()]
    assert 'data-name="run.tadder"' in Path("run.html").read_text()
    assert main(["demo", "run.tadder"]) == 0  # an earlier page is replaced
    assert Path("demo.html").read_bytes() == Path("run.html").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.tadder"], "cannot read nowhere.tadder: No such file"),
        (["run"], "cannot read 'run': expected the path of a .tadder file"),
        (["text.html"], "text.html is not a valid program"),
        (["row.tadder"], "cannot tell from row.tadder how to prepare an image"),
        (["-o", "page.htm"], "--out page.htm: expected a name that ends in .html"),
        (["-o", "nowhere/page.html"], "--out nowhere/page.html: nowhere is no folder"),
        (["-o", "text.html"], "--out text.html: is no page that torchadder wrote"),
    ],
)
def test_refused(folder, refused, arguments, words):
    Path("text.html").write_text("<html>mine</html>")
    Maker(0).program().save("row.tadder")  # does not say how to prepare an image
    assert words in refused(["demo", *arguments])
    assert Path("text.html").read_text() == "<html>mine</html>"
    assert not Path("demo.html").exists()
