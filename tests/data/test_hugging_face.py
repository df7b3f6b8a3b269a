"""Test hf:NAME with folders that `datasets` writes or reads, without a network, and the messages for wrong ones."""

import pickle
import sys

import pytest
from tests.data.samples import content_of, numbers_of

from torchadder.data import load_dataset, open_batches
from torchadder.errors import UserError

pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hf: needs datasets, which is not installed: pip install 'torchadder\[hf\]'"):
        load_dataset("hf:mnist")


@pytest.fixture
def datasets(nowhere_else, tmp_path, monkeypatch):
    """Return the package, offline, with an empty cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("datasets", reason="no datasets: pip install 'torchadder[hf]'")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(package.config, "HF_HUB_OFFLINE", True)
    package.disable_progress_bars()
    return package


def table(datasets, numbers, labels=("cat", "dog", "eel"), image="image", label="label", **more):
    """Return a table of images of those numbers; the label is the number modulo 3."""
    features = {
        image: datasets.Image(),
        label: datasets.ClassLabel(names=labels) if labels else datasets.Value("int32"),
    }
    columns = {image: [{"bytes": content_of(i), "path": None} for i in numbers], label: [i % 3 for i in numbers]}
    for name, (feature, values) in more.items():
        features[name], columns[name] = feature, values
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def save(datasets, folder, form, **splits):
    if form == "arrow":
        datasets.DatasetDict(splits).save_to_disk(str(folder))
    for split, rows in splits.items() if form == "parquet" else ():
        folder.mkdir(exist_ok=True)
        rows.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def found(split):
    ((images, labels),) = open_batches(split, 100, workers=0)
    return numbers_of(images, split.normalization), labels.tolist()


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@pytest.mark.parametrize("test", ["test", "validation"])
def test_images_and_labels_of_a_folder(datasets, tmp_path, form, test):
    save(datasets, tmp_path / "mine", form, train=table(datasets, range(7)), **{test: table(datasets, range(20, 24))})
    dataset = load_dataset("hf:mine,size=16")
    assert (dataset.name, dataset.num_classes, dataset.in_chans) == ("hf:mine,size=16", 3, 3)
    assert found(dataset.train) == ([*range(7)], [i % 3 for i in range(7)])
    assert found(dataset.test) == ([20, 21, 22, 23], [2, 0, 1, 2])
    source = pickle.loads(pickle.dumps(dataset.train.source))  # as for a spawned worker
    assert source.read(6) == content_of(6)


def test_a_folder_of_image_files(datasets, tmp_path):
    for split, numbers in (("train", range(6)), ("test", range(6, 9))):
        for i in numbers:
            path = tmp_path / "mine" / split / "abc"[i % 3] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content_of(i))
    dataset = load_dataset(f"hf:{tmp_path / 'mine'},size=16")
    numbers, labels = found(dataset.train)
    assert sorted(numbers) == [*range(6)]
    assert labels == [i % 3 for i in numbers]


def test_splits_and_columns_by_name(datasets, tmp_path):
    more = {"fine": (datasets.ClassLabel(num_classes=9), [8, 7]), "mask": (datasets.Image(), [None, None])}
    splits = {name: table(datasets, range(2), image="img", **more) for name in ("train", "extra", "test")}
    save(datasets, tmp_path / "mine", "arrow", **splits)
    with pytest.raises(
        UserError, match="which column is the image\\? Name it with image=; there are: img, label, fine"
    ):
        load_dataset("hf:mine")
    with pytest.raises(UserError, match="which column is the label\\? Name it with label="):
        load_dataset("hf:mine,image=img")
    dataset = load_dataset("hf:mine,image=img,label=fine,train=extra,size=16")
    assert (dataset.num_classes, found(dataset.train)) == (9, ([0, 1], [8, 7]))
    assert dataset.train.source.name(1) == "extra[1]"


def test_classes_without_names_are_counted(datasets, tmp_path):
    rows = table(datasets, range(2), labels=None)
    save(datasets, tmp_path / "mine", "arrow", train=rows, test=rows)
    assert load_dataset("hf:mine,label=label").num_classes == 2


def test_damaged_images_are_named(datasets, tmp_path):
    rows = table(datasets, range(2))
    damaged = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"junk", "path": None}], "label": [0]}, features=rows.features
    )
    save(datasets, tmp_path / "mine", "arrow", train=rows, test=damaged)
    with pytest.raises(UserError, match=r"hf:mine: test\[0\] \(cannot identify image file\) cannot be used"):
        found(load_dataset("hf:mine").test)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ",size=224,split=x",
            "hf:mine,size=224,split=x: 'split=x' is unknown or there twice, expected config=..., train=",
        ),
        (",test=holdout", "no split holdout, there are: train, test; name one with test="),
        (",image=photo", "image=photo is no column, there are: image, label, text"),
        (",label=text", "column text holds no integers; name another with label="),
        (",test=test", "hf:mine,test=test: the labels of test are hidden: name another split with test="),
        (",train=test,test=train", r"hf:mine: the label of test\[1\] is -1, expected 0 to 2"),
    ],
)
def test_wrong_options_get_one_line(datasets, tmp_path, options, words):
    rows = table(datasets, range(2), text=(datasets.Value("string"), ["a", "b"]))
    hidden = rows.map(lambda row, i: {"label": -1 if i else 0}, with_indices=True)
    save(datasets, tmp_path / "mine", "arrow", train=rows, test=hidden)
    with pytest.raises(UserError, match=words) as caught:
        load_dataset(f"hf:mine{options}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_names_that_cannot_be_loaded_get_one_line(datasets, name):
    with pytest.raises(UserError, match=f"hf:{name} cannot be loaded: ") as caught:
        load_dataset(f"hf:{name}")
    assert "\n" not in str(caught.value)
