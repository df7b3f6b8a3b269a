"""Test torchadder figures: a line for each figure, JSON, progress on stderr, the line of every mistake."""

import json
import shutil
from pathlib import Path

import pytest

from torchadder.cli import main
from torchadder.lab.figures import FIGURES, gallery


def test_a_line_for_each_figure(folder, capsys):
    assert main(["figures", "run", "--figure", "filters,curves"]) == 0
    out, err = capsys.readouterr()
    filters, curves = out.splitlines()
    assert filters.startswith("filters  6 filters of 5x5, largest |weight| of AdderNet, full gradient, ALR, eta 0.1: ")
    assert filters.endswith("-> figures/filters.png .svg .json")
    assert curves.startswith("curves  test accuracy: AdderNet, full gradient, ALR, eta 0.1 ")
    assert err == ""
    written = {path.name for path in Path("figures").iterdir()}
    assert written == {f"{name}.{kind}" for name in ("filters", "curves") for kind in ("png", "svg", "json")}


def test_what_is_left_out_is_told(folder, capsys, monkeypatch):
    monkeypatch.setattr(gallery, "FIGURES", {name: FIGURES[name] for name in ("features", "gradients", "outputs")})
    assert main(["figures", "run", "--iterations", "2", "--out", "new/folder"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["gradients", "outputs", "features"]
    assert lines[-1] == (
        "features  left out: lenet5bn has no features in a plane or in space: name runs of lenetpp or lenetpp_3d"
    )
    title = "AdderNet, full gradient, ALR, eta 0.1"
    assert err.splitlines() == [f"gradients: {title}", f"outputs: {title}"]


def test_json_is_one_object(folder, capsys):
    assert main(["figures", "run", "run", "--figure", "gradients", "--iterations", "1", "--json", "-o", "out"]) == 0
    out, _ = capsys.readouterr()
    result = json.loads(out)
    (made,) = result["figures"]
    assert made["name"] == "gradients"
    assert result["left_out"] == {}
    assert all(Path(made[kind]) == Path(f"out/gradients.{kind}") for kind in ("png", "svg", "json"))
    layers = json.loads(Path(made["json"]).read_text())["panels"][1]["layers"]
    assert f"{layers[0]['norms'][0]:.4f}" in made["line"]


BAD = [  # arguments after figures, words of the line
    (["run", "--figure", "curve"], "--figure curve is unknown: expected one of features, filters, weights"),
    (["run", "--figure", ""], "--figure is empty"),
    (["run", "--figure", "curves,features"], "features: lenet5bn has no features in a plane or in space"),
    (["run", "other", "--figure", "weights"], "weights: lenet5bn and lenetpp have different layers"),
    (["run", "--iterations", "0"], "'--iterations'"),
    ([], "Missing argument 'RUN...'"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_mistakes_are_one_line(folder, refused, arguments, words):
    shutil.copytree("run", "other")
    recipe = json.loads(Path("other/recipe.json").read_text())
    Path("other/recipe.json").write_text(json.dumps({**recipe, "model": "lenetpp"}))
    assert words in refused(["figures", *arguments])
    assert not Path("figures").exists()
