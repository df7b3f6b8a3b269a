"""Test that a file is written whole or not at all, and that a path is checked before long work."""

import os
from pathlib import Path

import pytest

from torchadder import files
from torchadder.errors import UserError


def test_the_content_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    for content in (b"first", b"second", b""):
        files.write_bytes(path, content)
        assert path.read_bytes() == content
        assert [*tmp_path.iterdir()] == [path]


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
