"""Making figures: three files each, drawn from the JSON alone and the same each time; what cannot be made is told."""

import json
import sys

import pytest

from torchadder.errors import UserError
from torchadder.lab.figures import FIGURES, FigureInputs, drawing, gallery, write_figures
from torchadder.lab.runs import TrainedRun

PNG, SVG = b"\x89PNG\r\n", b"<?xml"


@pytest.fixture
def runs(trained):
    return [TrainedRun.read(trained(op, op=op)) for op in ("adder", "conv")]


def test_all_that_can_be_made_is_made(runs, tmp_path):
    out = tmp_path / "new" / "figures"
    made, left_out = write_figures(FigureInputs(runs, iterations=2), out)
    assert [m.name for m in made] == [name for name in FIGURES if name != "features"]
    assert left_out == {
        "features": "lenet5bn has no features in a plane or in space: name runs of lenetpp or lenetpp_3d"
    }
    assert {path.name for path in out.iterdir()} == {
        f"{m.name}.{kind}" for m in made for kind in ("png", "svg", "json")
    }
    for m in made:
        assert (out / f"{m.name}.png").read_bytes().startswith(PNG)
        assert (out / f"{m.name}.svg").read_bytes().startswith(SVG)
        assert m.line
        assert "\n" not in m.line
        record = json.loads((out / f"{m.name}.json").read_text())
        assert record["figure"] == m.name
        assert [run["recipe"]["op"] for run in record["runs"]] == ["adder", "conv"]
        assert {key: record[key] for key in m.data} == m.data


@pytest.mark.parametrize("name", ["filters", "gradients"])
def test_a_figure_is_drawn_from_its_json_alone_and_the_same_each_time(runs, tmp_path, name):
    (made,), _ = write_figures(FigureInputs(runs, iterations=2), tmp_path / "first", [name])
    record = json.loads((tmp_path / "first" / f"{name}.json").read_text())
    with drawing.styled():
        drawing.write(FIGURES[name].draw(record), tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"{name}.{kind}").read_bytes() == made.stem.with_suffix(f".{kind}").read_bytes()


def test_names_choose_figures(runs, tmp_path):
    made, left_out = write_figures(FigureInputs(runs), tmp_path, ["curves", "filters", "curves"])
    assert [m.name for m in made] == ["curves", "filters"]
    assert left_out == {}


def test_networks_do_not_mix_where_layers_are_compared(runs, trained, tmp_path):
    other = TrainedRun.read(trained("other", model="lenetpp", op="conv", epochs=1, batch_size=50))
    made, left_out = write_figures(FigureInputs([runs[0], other]), tmp_path)
    assert [m.name for m in made] == ["curves"]
    assert left_out["weights"] == (
        "lenet5bn and lenetpp have different layers, which do not compare: name runs of one network"
    )
    assert sorted(left_out) == sorted(set(FIGURES) - {"curves"})


def test_data_that_cannot_be_had(runs, tmp_path, monkeypatch):
    def missing(data_dir):
        raise UserError("no such data")

    monkeypatch.setattr(TrainedRun, "dataset", lambda run, data_dir: missing(data_dir))
    monkeypatch.setattr(gallery, "FIGURES", {name: FIGURES[name] for name in ("filters", "outputs")})
    made, left_out = write_figures(FigureInputs(runs), tmp_path)
    assert left_out["outputs"] == "no such data"
    assert [m.name for m in made] == ["filters"]
    with pytest.raises(UserError, match=r"^outputs: no such data$"):
        write_figures(FigureInputs(runs), tmp_path, ["outputs"])


def test_an_unwritable_folder_is_told_before_anything_is_measured(runs, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(FIGURES["curves"], "measure", None)
    for out in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(UserError, match="cannot write into"):
            write_figures(FigureInputs(runs), out, ["curves"])


def test_matplotlib_is_missing(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r'figures need matplotlib: pip install "torchadder\[plot\]"'):
        write_figures(FigureInputs(runs), tmp_path)


TITLES = [
    ("CNN", 40, "CNN"),
    ("AdderNet, full gradient, ALR, eta 0.1", 22, "AdderNet,\nfull gradient, ALR,\neta 0.1"),
    ("a_long_folder/of_a_run", 8, "a_long_f\nolder/of\n_a_run"),
]


@pytest.mark.parametrize(("title", "width", "lines"), TITLES)
def test_titles_break_at_commas(title, width, lines):
    assert drawing.wrapped(title, width) == lines
