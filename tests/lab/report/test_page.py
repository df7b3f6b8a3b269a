"""Test the page as a file: it runs and loads only its own code, escapes names, and says what is missing."""

import base64
import hashlib
import html
import json
import re
import sys

import pytest
from tests.lab.report.conftest import ATTACK, CLASSES, FOLDER

from torchadder.data import registry as datasets
from torchadder.errors import UserError
from torchadder.lab import report
from torchadder.lab.report import charts, page
from torchadder.lab.runs import TrainedRun
from torchadder.train import RECIPES

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
DATA = re.compile(r'<script type="application/json" id="charts">(.*?)</script>', re.DOTALL)


@pytest.fixture(params=["one", "two", "bare"])
def text(pages, request):
    return pages[request.param].read_text()


def test_only_scripts_of_the_package_run_and_nothing_is_loaded(text):
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)[1])
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in SCRIPT.findall(text)]
    assert len(digests) == 2
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy == (
        f"default-src 'none'; script-src {allowed}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    own = text.split("<script")[0]
    assert re.findall(r'\bsrc="(?!data:image/png;base64,)', own) == []
    assert re.findall(r'\bhref="(?!#|data:,)', own) == []
    assert "@import" not in own
    assert "url(" not in own
    assert text.startswith("<!doctype html>")
    assert "vega.github.io/schema" not in DATA.search(text)[1]


def test_names_with_html_are_shown_as_text(text):
    assert text.count("<script") == text.count("</script") == 3
    assert "<img src=x" not in text
    assert html.escape(ATTACK).replace("&quot;", "&#34;") in text
    names = [name for name in CLASSES if name != ATTACK] if "Confusion matrix" in text else []
    for name in names:
        assert html.escape(name).replace("&quot;", "&#34;") in text
    assert "<!--" not in text


def test_the_page_is_small(text):
    scripts = sum(map(len, SCRIPT.findall(text)))
    assert len(text.encode()) < 3e6
    assert len(text) - scripts < 3e5


def test_charts_hold_the_numbers_of_the_runs(pages, world):
    data = json.loads(DATA.search(pages["two"].read_text())[1])
    rows = data["shared"]["metrics"]
    assert len(rows) == 2 * 2 * 3  # runs, splits, epochs
    for number, run in enumerate(world.values()):
        for metrics in run.metrics:
            for split in ("train", "test"):
                (found,) = [r for r in rows if (r["run"], r["split"], r["epoch"]) == (number, split, metrics["epoch"])]
                assert found["accuracy"] == pytest.approx(metrics[f"{split}_accuracy"], rel=1e-4)
                assert found["loss"] == pytest.approx(metrics[f"{split}_loss"], rel=1e-4)
    weights = [figure["datasets"] for figure in data["figures"].values() if figure["spec"] == "weights"]
    assert len(weights) == 10
    assert [sum(bar["weights"] for bar in figure["bins"]) for figure in weights[:5]] == [150, 2400, 48000, 10080, 840]
    for figure in weights:
        area = sum(bar["density"] * (bar["to"] - bar["from"]) for bar in figure["bins"])
        assert area == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("losses", "kind"), [([0.5, 0.1], "log"), ([0.5, 0.0], None), ([0.5, float("nan")], "log")])
def test_a_loss_of_zero_has_no_logarithm(losses, kind):
    rows = [
        {"run": 0, "split": "test", "epoch": epoch, "loss": charts.rounded(loss), "accuracy": 50.0}
        for epoch, loss in enumerate(losses, start=1)
    ]
    spec = charts.curves("loss", ["a title"], rows)
    assert spec["layer"][0]["encoding"]["y"]["scale"].get("type") == kind


def test_missing_parts_are_listed_without_folders(pages, world, tmp_path):
    text = pages["bare"].read_text()
    assert "the test images are not available" in text
    assert "holds no .tadder file" in text
    assert str(tmp_path.parent.parent) not in text
    for named in pages.values():
        assert str(world["adder"].folder.parent.parent) not in named.read_text()
    lines = report.write([world["conv"]], tmp_path / "untested.html", test=False)
    assert lines == [
        f"{page.UNTESTED}: the test images were left out",
        "no 8-bit accuracy and latency: the run directory holds no .tadder file (torchadder quantize "
        f"{world['conv'].folder} -o {world['conv'].folder}/int8.tadder makes one)",
    ]
    assert "Confusion matrix" not in (tmp_path / "untested.html").read_text()


def test_two_runs_are_compared_field_by_field(pages, world):
    text = pages["two"].read_text()
    differing = re.findall(r'<th scope="row">(op|lr_scheme|eta|weight_grad|input_grad|seed|epochs)</th>', text)
    assert differing == ["op", "lr_scheme", "eta", "weight_grad", "input_grad"]
    for run in world.values():
        assert f"{run.metrics[-1]['test_accuracy']:.2f}" in text


def test_many_classes_are_listed_by_their_confusions(world, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MATRIX", 9)
    report.write([world["adder"]], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "matrix of 10 classes is too large" in text
    assert 'class="matrix"' not in text


def named(run, **changes):
    return TrainedRun(**{**vars(run), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run, folder: [], "compares 1 to 8 runs, got 0"),
        (lambda run, folder: [named(run, folder=folder / str(n)) for n in range(9)], "compares 1 to 8 runs, got 9"),
        (
            lambda run, folder: [run, named(run, folder=folder, recipe=RECIPES["lenet5bn-mnist"])],
            "was tested on .* and .* on mnist: accuracies on different data sets do not compare",
        ),
    ],
)
def test_runs_that_cannot_be_on_one_page(world, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        report.write(change(world["adder"], tmp_path), tmp_path / "page.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_a_full_disk_leaves_the_old_page(world, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page.files, "write_bytes", full)
    (tmp_path / "page.html").write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        report.write([world["conv"]], tmp_path / "page.html", test=False)
    assert (tmp_path / "page.html").read_text() == "old"


@pytest.mark.parametrize("package", page.PACKAGES)
def test_a_missing_package_is_named(world, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf'needs {package}, which is not installed: pip install "torchadder\[report\]"'
    ):
        report.write([world["adder"]], tmp_path / "page.html")


def test_a_named_data_folder_without_the_data_is_an_error(world, tmp_path, monkeypatch):
    def refuse(data_dir):
        raise UserError(f"data_dir={data_dir} holds nothing")

    monkeypatch.setitem(datasets._DATASETS, ATTACK, refuse)
    with pytest.raises(UserError, match="holds nothing"):
        report.write([world["adder"]], tmp_path / "page.html", data_dir=tmp_path)


def test_only_the_last_name_of_a_folder_is_shown(pages):
    assert html.escape(f"adder {FOLDER}") in pages["two"].read_text()
