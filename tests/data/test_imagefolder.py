"""Test imagefolder:DIR: the pixels of the files, the cache, and the message for each wrong folder or name."""

import os
import sys

import numpy as np
import pytest
import torch

from torchadder.data import Augmentation, RandomResizedCrop, imagefolder, load_dataset, open_batches
from torchadder.errors import UserError

Image = pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")

SIZE = (9, 16)  # height, width
FILES = {  # split/class -> names, not in the order of their creation
    "train/cat": ("b.png", "a.png", "10.png"),
    "train/dog": ("x.png",),
    "train/eel": ("y.PNG", "z.png"),
    "test/dog": ("1.png", "0.png"),
    "test/cat": ("2.png",),
}
TRAIN = ("cat/10", "cat/a", "cat/b", "dog/x", "eel/y", "eel/z")
TEST = ("cat/2", "dog/0", "dog/1")


def pixels_of(split, name):
    """Return random pixels (height, width, channel), different for every file."""
    return np.random.default_rng([*f"{split}/{name}".encode()]).integers(0, 256, (*SIZE, 3), np.uint8)


pytestmark = pytest.mark.usefixtures("nowhere_else")


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "animals")


def written(folder):
    for where, names in FILES.items():
        split, kind = where.split("/")
        (folder / where).mkdir(parents=True)
        for name in names:
            Image.fromarray(pixels_of(split, f"{kind}/{name[:-4]}")).save(folder / where / name)
    return folder


def cached(tmp_path):
    return sorted((tmp_path / "cache" / "torchadder" / "imagefolder").glob("*"))


def assert_is_the_data(dataset, train=TRAIN, test=TEST):
    assert (dataset.num_classes, dataset.in_chans) == (3, 3)
    for split, names, part in (("train", train, dataset.train), ("test", test, dataset.test)):
        expected = np.stack([pixels_of(split, name).transpose(2, 0, 1) for name in names])
        assert (part.pixels.dtype, part.labels.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(part.pixels.numpy(), expected)
        assert part.labels.tolist() == [["cat", "dog", "eel"].index(name[:3]) for name in names]


def test_images_labels_and_settings(folder):
    dataset = load_dataset(f"imagefolder:{folder}")
    assert_is_the_data(dataset)
    assert dataset.name == f"imagefolder:{folder}"
    assert dataset.augmentation == Augmentation(padding=1)  # 9 // 8


@pytest.mark.parametrize("options", ["", ",size=8"])
def test_other_files_are_counted_and_named(folder, capsys, options):
    (folder / "train" / "eel" / "y.PNG").rename(folder / "train" / "eel" / "y")  # the content tells an image
    for name in ("cat/notes.txt", "cat/b.heic", "cat/.hidden", "list.csv"):
        (folder / "train" / name).write_text("no image")
    (folder / "train" / "dog" / "puppies").mkdir()
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    (folder / "train" / ".thumbnails").mkdir()
    dataset = load_dataset(f"imagefolder:{folder}{options}")
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    lines = [line for line in capsys.readouterr().err.splitlines() if "no images" in line]
    names = "train/list.csv, train/cat/b.heic, train/cat/notes.txt, train/cat/pipe.png, train/dog/puppies"
    formats = "JPEG, PNG, WebP, GIF, BMP, TIFF, PGM or PPM"
    assert lines == [f"imagefolder: {folder}: left out, no images of a class ({formats}): 5, {names}"]


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


SIX = "/".join(map(str, sum(CIFAR, ())))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("cifar", *CIFAR), ("imagenet", *IMAGENET), ("0.5/0.25", (0.5,) * 3, (0.25,) * 3), (SIX, *CIFAR), ("", (), ())],
)
def test_normalised_by_statistics_that_are_named_or_those_of_the_training_pixels(folder, name, mean, std):
    dataset = load_dataset(f"imagefolder:{folder}" + (f",normalize={name}" if name else ""))
    if not name:
        train = np.stack([pixels_of("train", name) for name in TRAIN]) / 255
        mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))
    expected = (np.stack([pixels_of("test", name) for name in TEST]) / 255 - mean) / std
    np.testing.assert_allclose(dataset.test.images.numpy(), expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("options", "mean", "std"), [("", *IMAGENET), (",normalize=cifar", *CIFAR)])
def test_streamed_with_a_size(folder, options, mean, std):
    """Resize images of any size; one that is higher by 256/224 keeps its middle unchanged."""
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(folder / "train" / "cat" / "b.png")
    Image.fromarray(pixels_of("test", "cat/2")).resize((16, 16), 0).save(folder / "test" / "cat" / "2.png")
    dataset = load_dataset(f"imagefolder:{folder},size=14{options}")
    assert (dataset.num_classes, dataset.augmentation) == (3, RandomResizedCrop())
    assert (len(dataset.train), len(dataset.test)) == (6, 3)
    assert dataset.train.source.labels.tolist() == [0, 0, 0, 1, 2, 2]
    ((images, labels),) = open_batches(dataset.test, 3, workers=0)
    with Image.open(folder / "test" / "cat" / "2.png") as image:
        middle = np.asarray(image)[1:15, 1:15] / 255
    np.testing.assert_allclose(images[0], ((middle - mean) / std).transpose(2, 0, 1), rtol=0, atol=1e-5)
    assert labels.tolist() == [0, 1, 1]


def test_a_channel_of_one_value_stays_finite(tmp_path, capsys):
    for where in ("train/a", "train/b", "test/a"):
        (tmp_path / "grey" / where).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / "grey" / where / "0.png")
    assert load_dataset("imagefolder:grey").test.images.abs().max() < 1e-6
    assert "grey: all training images have one colour" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "variable", "cache/torchadder", "flag"])
def test_a_relative_folder_is_searched(tmp_path, monkeypatch, place):
    (tmp_path / "variable").mkdir()
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "variable"))
    written(tmp_path / place / "animals")
    assert_is_the_data(load_dataset("imagefolder:animals", tmp_path / "flag" if place == "flag" else None))


def test_val_replaces_test(folder):
    (folder / "test").rename(folder / "val")
    assert len(load_dataset(f"imagefolder:{folder}").test) == 3


def test_the_second_start_decodes_nothing(folder, tmp_path, monkeypatch, capsys):
    first = load_dataset(f"imagefolder:{folder}")
    assert "imagefolder: 9 images in " in capsys.readouterr().err
    monkeypatch.setattr(imagefolder, "load_pillow", None)
    second = load_dataset(f"imagefolder:{folder}")
    assert_is_the_data(second)
    assert all(map(torch.equal, first.train.normalization, second.train.normalization))
    assert capsys.readouterr().err == ""
    assert len(cached(tmp_path)) == 1


def replaced(folder):
    path = folder / "train" / "dog" / "x.png"
    before = path.stat()
    path.write_bytes((folder / "train" / "cat" / "a.png").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    return "train", 3, "train", "cat/a"


def renamed(folder):
    (folder / "test" / "dog" / "1.png").rename(folder / "test" / "cat" / "00.png")
    return "test", 0, "test", "dog/1"


@pytest.mark.parametrize("change", [replaced, renamed])
def test_changed_files_are_decoded_again(folder, change):
    load_dataset(f"imagefolder:{folder}")
    split, index, *source = change(folder)
    found = getattr(load_dataset(f"imagefolder:{folder}"), split)
    assert np.array_equal(found.pixels[index].numpy(), pixels_of(*source).transpose(2, 0, 1))


@pytest.mark.parametrize("change", [lambda raw: raw[:-10], lambda raw: b"junk", lambda raw: b""])
def test_a_damaged_cache_is_written_again(folder, tmp_path, capsys, change):
    load_dataset(f"imagefolder:{folder}")
    (path,) = cached(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    assert_is_the_data(load_dataset(f"imagefolder:{folder}"))
    assert f"{path} is damaged" in capsys.readouterr().err
    assert len(path.read_bytes()) == len(whole)


def full_disk(tensors, path, metadata):
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", [full_disk, None])
def test_a_cache_that_cannot_be_written_costs_only_time(folder, tmp_path, monkeypatch, capsys, failing):
    if failing:
        monkeypatch.setattr(imagefolder, "save_file", failing)
    else:
        (tmp_path / "cache").write_text("a file where the folder should be")
    assert_is_the_data(load_dataset(f"imagefolder:{folder}"))
    err = capsys.readouterr().err
    assert ("No space left on device" if failing else "") in err
    assert "the next start decodes them again" in err
    assert cached(tmp_path) == []


def damage(folder):
    """Damage five images, each in another way."""
    (folder / "train" / "cat" / "a.png").write_bytes(b"<html>not found</html>")
    path = folder / "train" / "cat" / "b.png"
    path.write_bytes(path.read_bytes()[:-100])
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / "train" / "eel" / "y.PNG")
    Image.fromarray(np.zeros(SIZE, np.float32)).save(folder / "test" / "dog" / "0.png", "TIFF")
    (folder / "test" / "dog" / "1.png").unlink()
    (folder / "test" / "dog" / "1.png").symlink_to("nothing")


DAMAGE = [
    r"5 of 9 images cannot be used: ",
    r"train/cat/a.png \(cannot identify image file\)",
    r"train/cat/b.png \(.*truncated.*\)",
    r"train/eel/y.PNG \(5 x 4 pixels, the first image has 16 x 9\)",
    r"test/dog/0.png \(mode F, expected grey, RGB, CMYK or a palette of at most 16 bits\)",
    r"test/dog/1.png \(No such file or directory\)",
]


def test_damaged_images_are_counted_and_named(folder):
    damage(folder)
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(UserError, match=", ".join(DAMAGE).replace(": , ", ": ")) as caught:
            load_dataset(f"imagefolder:{folder}")
        assert str(caught.value).endswith(
            f"; stream images of different sizes with imagefolder:{folder},size=224, replace them, or leave them "
            "out with on_error=skip"
        )
        assert "\n" not in str(caught.value)


def test_damaged_images_are_skipped_on_request(folder, capsys):
    damage(folder)
    for _ in range(2):
        dataset = load_dataset(f"imagefolder:{folder}", on_error="skip")
        assert_is_the_data(dataset, ("cat/10", "dog/x", "eel/z"), ("cat/2",))
        err = capsys.readouterr().err
        assert "5 of 9 images cannot be used: train/cat/a.png" in err
        assert err.endswith("; left out\n")


def test_many_damaged_images_are_counted_and_some_named(folder):
    for i in range(30):
        (folder / "train" / "cat" / f"n{i:02}.jpg").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"30 of 39 images .* train/cat/n09.jpg \([^)]*\) and 20 more; replace"):
        load_dataset(f"imagefolder:{folder}")


def without(path):
    def apply(folder):
        for file in sorted((folder / path).rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        (folder / path).rmdir()

    return apply


def empty(path):
    def apply(folder):
        for file in (folder / path).iterdir():
            file.unlink()

    return apply


def ruined(split):
    def apply(folder):
        for path in (folder / split).rglob("*.*"):
            path.write_bytes(b"junk")

    return apply


def of_another_size(folder):
    Image.new("RGB", (5, 4)).save(folder / "train" / "cat" / "10.png")


ONE_CLASS = [("train", "dog"), ("train", "eel"), ("test", "dog")]
WRONG = [  # change to a good folder, words in the message
    (without("train"), r"animals.train is no folder: put the training images into .*animals.train/CLASS/"),
    (without("test"), r"animals has neither test nor val: put the test images into .*animals.test/CLASS/"),
    (lambda folder: [without(path)(folder) for path in FILES if path[:2] == "tr"], "train has no subfolders: expected"),
    (lambda folder: [without(path)(folder) for path in FILES if path[:2] == "te"], "test has no subfolders: expected"),
    (empty("train/dog"), r"animals.train.dog has no images: expected JPEG, PNG"),
    (without("train/dog"), r"animals.test.dog is a class without training images: put some into .*animals.train.dog$"),
    (
        lambda folder: [without(f"{split}/{kind}")(folder) for split, kind in ONE_CLASS],
        "has one class, and every network answers it right",
    ),
    (ruined("train"), r"none of the 6 images of train can be used \(cannot identify image file\)"),
    (of_another_size, r"none of the 3 .* \(16 x 9 pixels.*\); stream them with .*,size=224$"),
    (ruined("test"), r"none of the 3 images of test can be used \(cannot identify image file\)"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_wrong_folder_gets_one_line(folder, change, words, on_error):
    change(folder)
    with pytest.raises(UserError, match=words) as caught:
        load_dataset(f"imagefolder:{folder}", on_error=on_error)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("imagefolder", "dataset=imagefolder is unknown: expected one of .*imagefolder:DIR"),
        ("imagefolder:", "dataset=imagefolder: is unknown: expected one of .*imagefolder:DIR"),
        ("picturefolder:x", "dataset=picturefolder:x is unknown: "),
        ("imagefolder:nowhere", r"no folder nowhere or .*torchadder.nowhere: put the images into train/CLASS/ and"),
        ("imagefolder:animals,size", "'size' is unknown or there twice, expected size=..., normalize=... or nothing"),
        ("imagefolder:animals,size=0", "size=0 is out of range: expected 1 to 4096"),
        ("imagefolder:animals,size=x", "size=x is out of range: expected 1 to 4096"),
        *(
            (f"imagefolder:animals{size},normalize=x", "normalize=x is unknown: expected imagenet, cifar, or")
            for size in (",size=8", "")
        ),
        *((f"imagefolder:animals,normalize={text}", "is unknown") for text in ("1", "0/0", "nan/1", "127/64", "0/1/")),
        ("imagefolder:animals,", "imagefolder:animals,: '' is unknown or there twice, expected size=..."),
    ],
)
def test_wrong_name_gets_one_line(folder, name, words):
    with pytest.raises(UserError, match=words):
        load_dataset(name)


def test_options_without_meaning_are_refused(folder):
    with pytest.raises(UserError, match="on_error=ignore is unknown: expected stop or skip"):
        load_dataset(f"imagefolder:{folder}", on_error="ignore")
    with pytest.raises(UserError, match="mnist has no images to decode; leave on_error=skip out"):
        load_dataset("mnist", on_error="skip")
    with pytest.raises(UserError, match=r"imagefolder:.* is read whole or not at all; leave partial=True out"):
        load_dataset(f"imagefolder:{folder}", partial=True)


def test_too_many_images_for_the_memory(folder, monkeypatch):
    monkeypatch.setattr(imagefolder, "MAX_BYTES", 9 * 3 * 9 * 16 - 1)
    words = r"9 images of 16 x 9 are 0.0 GiB decoded, .* take fewer .*, or stream them with imagefolder:.*,size=224$"
    with pytest.raises(UserError, match=words):
        load_dataset(f"imagefolder:{folder}")
    monkeypatch.setattr(imagefolder, "MAX_BYTES", 9 * 3 * 9 * 16)
    assert_is_the_data(load_dataset(f"imagefolder:{folder}"))


def test_without_pillow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"Pillow, which is not installed: pip install 'torchadder\[images\]'"):
        load_dataset(f"imagefolder:{folder}")


def test_threads_decode_the_same_images(folder, monkeypatch):
    monkeypatch.setattr(imagefolder, "THREADED_PIXELS", 1)
    monkeypatch.setattr(imagefolder, "PART", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_is_the_data(load_dataset(f"imagefolder:{folder}"))
