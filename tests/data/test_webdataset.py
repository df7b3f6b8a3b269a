"""Test wds:SHARDS: the samples of tar files, and the message for each wrong file or name."""

import io
import pickle
import tarfile

import pytest
from tests.data.samples import content_of, numbers_of

from torchadder.data import load_dataset, open_batches, webdataset
from torchadder.errors import UserError

pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'torchadder[images]'")


pytestmark = pytest.mark.usefixtures("nowhere_else")


def write(path, files, form=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def sample(number, label, extension="jpg"):
    return [(f"{number:06}.cls", b"%d" % label), (f"{number:06}.{extension}", content_of(number))]


@pytest.fixture
def folder(tmp_path):
    """Write training shards of 5, 1 and 2 samples and a test shard of 3; the label is the number // 2."""
    first = 0
    for name, count in (("train-00", 5), ("train-01", 1), ("train-02", 2), ("test", 3)):
        samples = [sample(i, i // 2) for i in range(first, first + count)]
        write(tmp_path / "shards" / f"{name}.tar", [file for files in samples for file in files])
        first += count
    return tmp_path / "shards"


def loaded(folder, train="train-{00..02}.tar", test="test.tar", options=",size=16", **keywords):
    return load_dataset(f"wds:{folder}/{train},test={folder}/{test}{options}", **keywords)


def found(split):
    batches = [*open_batches(split, 3, workers=0)]
    return [
        (number, label)
        for images, labels in batches
        for number, label in zip(numbers_of(images, split.normalization), labels.tolist(), strict=True)
    ]


def test_images_and_labels_of_all_shards_in_order(folder):
    dataset = loaded(folder, options=",classes=6,size=16")
    assert (dataset.num_classes, dataset.in_chans) == (6, 3)
    assert found(dataset.train) == [(i, i // 2) for i in range(8)]
    assert found(dataset.test) == [(8, 4), (9, 4), (10, 5)]


@pytest.fixture
def small(folder):
    """Write a test shard whose labels all occur in training, so that the number of classes is found."""
    write(folder / "test.tar", sample(9, 3))
    assert loaded(folder).num_classes == 4
    return folder


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_members_of_a_tar_file_are_ignored(small, form):
    folder = "a/" * 60  # names too long for a header
    files = [
        ("__index__", b"no sample"),
        ("._000001.jpg", b"what macOS leaves"),
        (f"{folder}1.v2.JPEG", b"not this one: what follows the first dot is its kind"),
        (f"{folder}1.json", b"{}"),
        (f"{folder}1.JPG", content_of(1)),
        (f"{folder}1.cls", b" 2\n"),
        (f"{folder}2.png", content_of(2, form="PNG")),
        (f"{folder}2.cls", b"0"),
    ]
    write(small / "odd.tar", files, form)
    with tarfile.open(small / "odd.tar", "a") as archive:
        link = tarfile.TarInfo("3.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret"
        archive.addfile(link)
    dataset = loaded(small, "odd.tar", options=",size=16,classes=4")
    assert found(dataset.train) == [(1, 2), (2, 0)]
    assert dataset.train.source.name(1) == f"odd.tar: {folder}2"


@pytest.mark.parametrize("place", [".", "variable", "cache/torchadder", "flag"])
def test_relative_names_are_searched(tmp_path, monkeypatch, small, place):
    (tmp_path / "variable").mkdir()
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "variable"))
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    small.rename(tmp_path / place / "mine")
    name = "wds:mine/train-{00..02}.tar,test=mine/test.tar,size=16"
    assert len(load_dataset(name, tmp_path / "flag" if place == "flag" else None).train) == 8


def test_a_source_can_be_pickled(small):
    source = loaded(small).train.source
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in range(8)] == [source.read(i) for i in range(8)] == [content_of(i) for i in range(8)]
    assert [again.name(i) for i in (0, 7)] == ["train-00.tar: 000000", "train-02.tar: 000007"]


def test_damaged_images_are_named(small, capsys):
    write(small / "train-01.tar", [("x.jpg", b"junk"), ("x.cls", b"0")])
    dataset = loaded(small)
    with pytest.raises(UserError, match=r"train-01.tar: x \(cannot identify image file\) cannot be used; replace it"):
        found(dataset.train)
    assert [number for number, _ in found(loaded(small, on_error="skip").train)] == [0, 1, 2, 3, 4, 6, 6, 7]
    assert "1 of 8 images cannot be used: train-01.tar: x (cannot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("x{0..1}-{a,b}.tar", ["x0-a.tar", "x0-b.tar", "x1-a.tar", "x1-b.tar"]),
        ("{5..4}.tar", []),
    ],
)
def test_braces(pattern, names):
    assert webdataset.expand(pattern) == names


def labelled(content):
    return lambda folder: write(folder / "train-01.tar", [("x.jpg", content_of(1)), ("x.cls", content)])


def cut(size):
    def apply(folder):
        path = folder / "train-00.tar"
        path.write_bytes(path.read_bytes()[:size])

    return apply


def compressed(folder):
    with tarfile.open(folder / "train-00.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"))


WRONG = [  # change to good shards, words in the message
    (lambda folder: (folder / "train-01.tar").unlink(), "1 of 3 shards are missing, the first is .*train-01.tar$"),
    (lambda folder: (folder / "train-00.tar").unlink(), "no shard .*train-00.tar: name the folder that they are in"),
    (
        lambda folder: write(folder / "train-01.tar", sample(1, 1)[:1]),
        r"sample 000001 has no image \(.jpg, .jpeg, .*.png, .webp",
    ),
    (lambda folder: write(folder / "train-01.tar", sample(1, 1)[1:]), r"sample 000001 has no label \(.cls\)"),
    (
        lambda folder: write(folder / "train-01.tar", [*sample(1, 1), ("000001.png", b"its mask")]),
        "train-01.tar: sample 000001 has two images",
    ),
    (labelled(b"cat"), "train-01.tar: the label of x is b'cat', expected an integer from 0"),
    (labelled(b"1" * 10), "the label of x is b'1111111111', expected"),
    (labelled(b""), "the label of x is b'', expected"),
    (labelled(b"999999999"), "the label of train-01.tar: x is 999999999, expected 0 to 999999"),
    (lambda folder: write(folder / "test.tar", sample(9, 4)), "the label of test.tar: 000009 is 4, expected 0 to 3"),
    (lambda folder: write(folder / "test.tar", []), "test.tar holds no samples: expected KEY.jpg and KEY.cls"),
    (cut(700), "train-00.tar: no tar file that is whole and not compressed .*; replace it"),
    (cut(0), "train-00.tar: no tar file that is whole and not compressed .*; replace it"),
    (compressed, "train-00.tar: no tar file that is whole and not compressed .*; replace it"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_wrong_shards_get_one_line(small, change, words):
    change(small)
    with pytest.raises(UserError, match=words) as caught:
        loaded(small)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wds:", "dataset=wds: is unknown: expected one of .*wds:SHARDS"),
        ("wds:a.tar", "wds:a.tar: the shards for testing are missing, add test=SHARDS"),
        (
            "wds:a.tar,test=b.tar,count=3",
            "'count=3' is unknown or there twice, expected test=..., size=..., classes=.*",
        ),
        (
            "wds:https://x.org/a.tar,test=b.tar",
            "https://x.org/a.tar is not on this machine: copy the shards to a folder",
        ),
        ("wds:pipe:curl x,test=b.tar", "pipe:curl x is not on this machine"),
        ("wds:a-{3..1}.tar,test=b.tar", r"a-\{3..1\}.tar stands for no shards: expected a range such as"),
        ("wds:{0..999999999}.tar,test=b.tar", "are more than 100,000 shards"),
        ("wds:{0..99999}{0..1}.tar,test=b.tar", "are more than 100,000 shards"),
        ("wds:shards/test.tar,test=shards/test.tar,classes=0", "classes=0 is out of range: expected 1 to 1000000"),
    ],
)
def test_wrong_name_gets_one_line(small, name, words):
    with pytest.raises(UserError, match=words):
        load_dataset(name)
