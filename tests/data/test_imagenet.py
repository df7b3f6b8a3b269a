"""Test ImageNet by a tiny sample of its layout: found, counted, refused or accepted in part, and trained on."""

import json

import pytest
from tests.data.samples import content_of, numbers_of
from typer.testing import CliRunner

from torchadder.cli.app import app
from torchadder.data import RandomResizedCrop, imagenet, load_dataset, open_batches
from torchadder.errors import UserError

pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")

FILES = {  # in the order of classes and names
    "train": ("n01440764/n01440764_18.JPEG", "n01440764/n01440764_36.JPEG", "n02119789/a.JPEG", "n02119789/b.JPEG"),
    "val": ("n01440764/ILSVRC2012_val_00000293.JPEG", "n02119789/ILSVRC2012_val_00000028.JPEG"),
}
FOUND = "2 classes, 4 training and 2 test images"


pytestmark = pytest.mark.usefixtures("nowhere_else")


def written(folder):
    number = 0
    for split, names in FILES.items():
        for name in names:
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content_of(number))
            number += 1
    return folder


@pytest.mark.parametrize("place", ["", "imagenet"])
@pytest.mark.parametrize("named", ["flag", "variable"])
def test_a_part_is_found_and_reported(tmp_path, monkeypatch, capsys, place, named):
    folder = written(tmp_path / "data" / place)
    if named == "variable":
        monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "data"))
    dataset = load_dataset("imagenet", tmp_path / "data" if named == "flag" else None, partial=True)
    assert (dataset.name, dataset.num_classes, dataset.in_chans) == ("imagenet", 2, 3)
    assert dataset.augmentation == RandomResizedCrop()
    assert capsys.readouterr().err == f"imagenet: {folder} has {FOUND}\n"
    ((images, labels),) = open_batches(dataset.test, 2, workers=0)
    assert (images.shape, labels.tolist()) == ((2, 3, 224, 224), [0, 1])
    assert numbers_of(images, dataset.test.normalization) == [4, 5]
    ((images, labels),) = open_batches(dataset.train, 4, train=True, augment=dataset.augmentation, workers=0)
    assert [number // 2 for number in numbers_of(images, dataset.train.normalization)] == labels.tolist()


def test_other_numbers_than_the_published_ones_are_refused(tmp_path, monkeypatch, capsys):
    written(tmp_path)
    with pytest.raises(UserError, match=f"{FOUND}, expected 1,000, 1,281,167 and 50,000: .* with partial=True"):
        load_dataset("imagenet", tmp_path)
    for name, count in (("CLASSES", 2), ("TRAIN", 4), ("VAL", 2)):
        monkeypatch.setattr(imagenet, name, count)
    assert load_dataset("imagenet", tmp_path).num_classes == 2
    assert capsys.readouterr().err == ""


def test_other_names_are_no_classes(tmp_path):
    written(tmp_path)
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(UserError, match=r"train.cat is no class of ImageNet.*; other images are imagefolder:.*,size=2"):
        load_dataset("imagenet", tmp_path, partial=True)


@pytest.mark.parametrize("lacking", ["train", "val"])
def test_missing_data_gets_advice(tmp_path, lacking):
    (written(tmp_path) / lacking).rename(tmp_path / "elsewhere")
    words = r"no ImageNet in .*: put train/nXXXXXXXX/\*.JPEG and val/nXXXXXXXX/\*.JPEG into one folder.*data_dir=DIR"
    with pytest.raises(UserError, match=words):
        load_dataset("imagenet", tmp_path)
    with pytest.raises(UserError, match=words):
        load_dataset("imagenet")


def test_val_without_subfolders_is_refused(tmp_path):
    """Refuse the published form of val: all images in one folder, the labels in another archive."""
    written(tmp_path)
    for path in [*(tmp_path / "val").rglob("*.JPEG")]:
        path.rename(tmp_path / "val" / path.name)
        path.parent.rmdir()
    with pytest.raises(UserError, match="val has no subfolders: expected one for each class, with its images"):
        load_dataset("imagenet", tmp_path, partial=True)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("recipe", "workers"), [("resnet18-imagenet", 1), ("resnet50-imagenet", 0)])
def test_recipes_run_from_end_to_end(tmp_path, monkeypatch, recipe, workers):
    monkeypatch.setattr(imagenet, "SIZE", 64)  # instead of 224: the same layers, in less time
    for path in [*written(tmp_path / "imagenet").glob("train/*/*[b6].JPEG")]:
        path.unlink()  # two remain: one step
    common = ["--data", str(tmp_path), "--partial", "--on-error", "skip", "--workers", str(workers), "--json"]
    options = ["--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "2", "--no-report"]
    commands = ["train", recipe, *options, *common], ["eval", str(tmp_path / "run"), *common]
    trained, tested = (CliRunner().invoke(app, command) for command in commands)
    assert (trained.exit_code, tested.exit_code) == (0, 0), trained.output + tested.output
    outcome, result = (json.loads(output.stdout) for output in (trained, tested))
    assert (result["images"], result["dataset"]) == (2, "imagenet")
    assert result["accuracy"] == outcome["accuracy"]
    (row,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["images_per_second"] > 0
