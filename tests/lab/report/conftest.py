"""Train two tiny runs whose names contain HTML and scripts, quantize one, and write pages about them."""

import pytest
from tests.conftest import patterns, registered

from torchadder import quant
from torchadder.data import registry as datasets
from torchadder.lab import report
from torchadder.lab.runs import TrainedRun
from torchadder.train import Recipe, Run, train

ATTACK = '</script><script>window.pwned = 1</script><img src=x onerror="window.pwned = 1">'
CLASSES = (ATTACK, "{{ 7 * 7 }}", "${1}", '"quoted" & co', "<!-- four", "five", "six", "seven", "eight", "nine")
FOLDER = "<img src=x onerror=window.pwned=1>"


def pixels(data_dir=None):
    return patterns(ATTACK, 2, 64, 30, CLASSES)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Return run directories by operator; that of the adder network holds int8.tadder."""
    root = tmp_path_factory.mktemp("runs") / FOLDER
    found = {op: root / f"{op} {FOLDER}" for op in ("adder", "conv")}
    with registered(ATTACK, pixels):
        for op, folder in found.items():
            recipe = Recipe(ATTACK, model="lenet5bn", dataset=ATTACK, op=op, epochs=3, batch_size=16)
            train(Run.open(folder, recipe))
        images = pixels().train.images
        quant.quantize(TrainedRun.read(found["adder"]).model(), [images]).save(found["adder"] / "int8.tadder")
    return found


@pytest.fixture
def world(monkeypatch, one_thread, folders):
    """Register the data set and return the runs by operator."""
    monkeypatch.setitem(datasets._DATASETS, ATTACK, pixels)
    return {op: TrainedRun.read(folder) for op, folder in folders.items()}


@pytest.fixture(scope="session")
def pages(folders, tmp_path_factory):
    """Write pages about the AdderNet (one), about both runs (two), and without data (bare); return their paths."""
    place = tmp_path_factory.mktemp("pages")
    adder, conv = (TrainedRun.read(folders[op]) for op in ("adder", "conv"))
    with registered(ATTACK, pixels):
        report.write([adder], place / "one.html")
        report.write([adder, conv], place / "two.html")
    report.write([conv], place / "bare.html")
    return {path.stem: path for path in place.glob("*.html")}
