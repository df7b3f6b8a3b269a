"""Test the networks in the package: the hash and the accuracy that their page states, and that they become C."""

import hashlib
import re
from importlib.resources import files

import pytest

from torchadder.data import load_dataset
from torchadder.data.mnist import MNIST, find_files
from torchadder.engine import Engine
from torchadder.export import export_c

FOLDER = files("torchadder") / "pretrained"
ROW = re.compile(r"^\| `([\w.]+)` \| `([0-9a-f]{64})` \| ([\d.]+)% \| `([\w-]+)` \|", flags=re.MULTILINE)
ROWS = ROW.findall((FOLDER / "README.md").read_text())
NAMES = [name for name, *_ in ROWS]


def test_the_page_has_every_file():
    assert sorted(NAMES) == sorted(path.name for path in FOLDER.iterdir() if path.name.endswith(".tadder"))


@pytest.mark.parametrize(("name", "digest", "accuracy", "recipe"), ROWS, ids=NAMES)
def test_hash_recipe_and_accuracy(name, digest, accuracy, recipe):
    content = (FOLDER / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest
    engine = Engine(content)
    assert (f"{engine.about['model']}-{engine.about['dataset']}", int(engine.about["bits"])) == (recipe, 4)
    if find_files(MNIST, None) is None:
        pytest.skip("needs the files of MNIST in TORCHADDER_DATA or the cache")
    test = load_dataset("mnist").test
    right = (engine(test.images).argmax(1) == test.labels).sum()
    assert f"{100 * right.item() / len(test):.2f}" == accuracy


@pytest.mark.parametrize(("name", "flash"), [("pico.tadder", 16_000), ("pico_wide.tadder", 32_000)])
def test_memory_on_a_microcontroller(name, flash, tmp_path):
    """The code for Cortex-M, and for RISC-V with a multiplier, has less than 3,500 bytes."""
    draft = export_c(FOLDER / name, tmp_path / "net")
    assert draft.flash + 3500 <= flash
    if name == "pico.tadder":
        assert 32 * 32 + draft.arena <= 2048
