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


@pytest.mark.parametrize("source", ["run", "run.tadder"])
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")  # torch's own
def test_onnx(folder, capsys, source):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    assert main(["export", source, "--to", "onnx", "-o", "net.onnx"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"net.onnx  {Path('net.onnx').stat().st_size:,} bytes\n", "")
    nodes = [node.op_type for node in onnx.load("net.onnx").graph.node if node.domain == "torchadder"]
    assert nodes == ["AdderConv"] * 3 + ["AdderLinear" if source == "run" else "AdderConv"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run.tadder", "--to", "java"], "--to java: expected c or onnx"),
        (["run.tadder", "--to", "c", "--name", "a b"], "--name 'a b': expected letters"),
        (["run.tadder", "--to", "c", "--max-flash", "1000"], "--max-flash 1000: the network needs "),
        (["run.tadder", "--to", "c", "--max-ram", "1000"], "--max-ram 1000: the network needs "),
        (["run.tadder", "--to", "onnx", "-o", "none/net.onnx"], "--out none/net.onnx: none is no folder"),
        (["run.tadder", "--to", "onnx", "--name", "a"], "--name a: is for C, leave it out"),
        (["run.tadder", "--to", "onnx"], "--out net: expected a name that ends in .onnx"),
        (["mine:build", "--to", "onnx", "-o", "net.onnx"], "mine:build: the size of its images is not known"),
        (["nowhere", "--to", "onnx", "-o", "net.onnx"], "nowhere"),
        (["nowhere.tadder", "--to", "c"], "cannot read nowhere.tadder"),
        (["run.tadder", "--to", "c", "-o", "."], "--out .: holds other files (run, run.tadder)"),
    ],
)
def test_refused(folder, refused, arguments, words):
    assert words in refused(["export", "-o", "net", *arguments])
    assert not Path("net").exists()
