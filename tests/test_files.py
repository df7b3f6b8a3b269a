"""Test that a file is written whole or not at all, and that a path is checked before long work."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from torchadder import files
from torchadder.data import load_dataset
from torchadder.errors import UserError


def test_the_content_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"first", b"second", b""):
        files.write_bytes(path, content)
        assert path.read_bytes() == content
        assert [*tmp_path.iterdir()] == [path]


def test_the_file_is_as_open_makes_one_and_no_other_is_touched(tmp_path):
    (tmp_path / "a.json.tmp").write_bytes(b"of the user")
    (tmp_path / "plain").touch()
    files.write_bytes(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "a.json.tmp").read_bytes() == b"of the user"


def test_a_link_and_permissions_are_kept(tmp_path):
    target, link = tmp_path / "a.json", tmp_path / "latest.json"
    link.symlink_to("a.json")
    for content in (b"first", b"second"):  # the target is missing at first
        files.write_bytes(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
        target.chmod(0o600)
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_bytes(pipe, b"new")
    assert os.read(descriptor, 10) == b"new"
    os.close(descriptor)
    assert pipe.is_fifo()


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync(number, tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    files.write_bytes(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *args: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    files.write_bytes(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a.txt", "out=a.txt: expected a name that ends in .html"),
        ("folder.html", "out=folder.html: is a folder; choose another file name"),
        ("missing/a.html", "out=missing/a.html: missing is no folder; create it first"),
        ("file/a.html", "out=file/a.html: file is no folder; create it first"),
        ("closed/a.html", "out=closed/a.html: no permission to write into closed; choose another folder"),
        ("a.html", None),
        ("old.html", None),
    ],
)
def test_a_path_is_checked_and_nothing_is_created(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda folder, mode: folder.name != "closed")  # root may write anywhere
    for folder in ("folder.html", "closed"):
        (tmp_path / folder).mkdir()
    for file in ("file", "old.html"):
        (tmp_path / file).write_text("old")
    before = sorted(tmp_path.rglob("*"))
    if message is None:
        files.check_writable(Path(path), ".html")
    else:
        with pytest.raises(UserError) as error:
            files.check_writable(Path(path), ".html")
        assert str(error.value) == message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("variable", "expected"), [("{}/x", "{}/x/torchadder"), ("", "{}/.cache/torchadder")])
def test_cache_folder(variable, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", variable.format(tmp_path))
    assert str(files.cache_folder()) == expected.format(tmp_path)


def test_without_a_home_there_is_no_cache(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "TORCHADDER_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}["nobody"])
    with pytest.raises(UserError, match="this user has no home: set HOME or XDG_CACHE_HOME"):
        files.cache_folder()
    with pytest.raises(UserError, match="no home"):  # before anything is fetched
        load_dataset("mnist")
    monkeypatch.chdir(tmp_path)
    for folder in ("images/train/a", "images/train/b", "images/test/a"):
        Path(folder).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(f"{folder}/0.png")
    assert len(load_dataset("imagefolder:images").train) == 2
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"no CIFAR-10 in {tmp_path}|no home"):
        load_dataset("cifar10")
    with pytest.raises(UserError, match="~nobody9/x"):
        load_dataset("imagefolder:~nobody9/x")
