"""Test writing figures: three files each, drawn from the JSON alone and reproducible; reasons for those left out."""

import json
import sys
from dataclasses import replace

import pytest

from torchadder.errors import UserError
from torchadder.lab.figures import FIGURES, FigureInputs, drawing, gallery, write_figures
from torchadder.lab.runs import TrainedRun

PNG, SVG = b"\x89PNG\r\n", b"<?xml"


def test_every_possible_figure_is_written_and_its_json_draws_the_same_bytes(runs, tmp_path):
    out = tmp_path / "new" / "figures"
    written, left_out = write_figures(FigureInputs(runs, iterations=2), out)
    assert [figure.name for figure in written] == [name for name in FIGURES if name != "features"]
    assert left_out == {
        "features": "lenet5bn has no features in a plane or in space: name runs of lenetpp or lenetpp_3d"
    }
    assert {path.name for path in out.iterdir()} == {
        f"{figure.name}.{kind}" for figure in written for kind in ("png", "svg", "json")
    }
    for figure in written:
        assert (out / f"{figure.name}.png").read_bytes().startswith(PNG)
        assert (out / f"{figure.name}.svg").read_bytes().startswith(SVG)
        assert figure.line
        assert "\n" not in figure.line
        record = json.loads((out / f"{figure.name}.json").read_text())
        assert record["figure"] == figure.name
        assert [run["recipe"]["op"] for run in record["runs"]] == ["adder", "conv"]
        if figure.name in ("filters", "gradients"):
            with drawing.styled():
                drawing.write(FIGURES[figure.name].draw(record), tmp_path / figure.name)
            for kind in (".png", ".svg"):
                again = (tmp_path / figure.name).with_suffix(kind).read_bytes()
                assert again == figure.stem.with_suffix(kind).read_bytes()


def test_layers_of_different_networks_are_not_compared(runs, tmp_path):
    other = replace(runs[1], recipe=replace(runs[1].recipe, model="lenetpp"))
    written, left_out = write_figures(FigureInputs([runs[0], other]), tmp_path)
    assert [figure.name for figure in written] == ["curves"]
    assert left_out["weights"] == (
        "lenet5bn and lenetpp have different layers, which do not compare: name runs of one network"
    )
    assert sorted(left_out) == sorted(set(FIGURES) - {"curves"})


def test_data_that_cannot_be_loaded(runs, tmp_path, monkeypatch):
    def missing(data_dir):
        raise UserError("no such data")

    monkeypatch.setattr(TrainedRun, "dataset", lambda run, data_dir: missing(data_dir))
    monkeypatch.setattr(gallery, "FIGURES", {name: FIGURES[name] for name in ("filters", "outputs")})
    written, left_out = write_figures(FigureInputs(runs), tmp_path)
    assert left_out["outputs"] == "no such data"
    assert [figure.name for figure in written] == ["filters"]
    with pytest.raises(UserError, match=r"^outputs: no such data$"):
        write_figures(FigureInputs(runs), tmp_path, ["outputs"])


def test_an_unwritable_folder_is_refused_before_anything_is_measured(runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(FIGURES["curves"], "measure", None)
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(UserError, match="cannot write into"):
            write_figures(FigureInputs(runs), out, ["curves"])


def test_matplotlib_is_missing(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r'figures need matplotlib: pip install "torchadder\[plot\]"'):
        write_figures(FigureInputs(runs), tmp_path)
