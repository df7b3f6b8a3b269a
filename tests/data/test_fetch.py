"""Test fetching of an archive, by CIFAR: only the published one is kept. Mirrors are folders and local servers."""

import gzip
import hashlib
import re
import threading
import urllib.error
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.data.samples import SETS, contents, tarred

from torchadder.data import cifar, fetch, load_dataset
from torchadder.errors import UserError


@pytest.fixture
def cache(nowhere_else, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "torchadder"


@pytest.fixture
def mirror(tmp_path, cache, monkeypatch):
    """Return a folder with tiny archives as the only mirror, with their digests as the published ones."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name, data in SETS.items():
        layout = data.layouts[0]
        files = contents(layout)
        layout = layout._replace(md5={file: hashlib.md5(content).hexdigest() for file, content in files.items()})
        packed = gzip.compress(tarred(files, layout.folder), mtime=0)
        archive = data.fetched._replace(
            size=len(packed), md5=hashlib.md5(packed).hexdigest(), mirrors=(f"{folder.as_uri()}/",)
        )
        (folder / archive.name).write_bytes(packed)
        published = data._replace(layouts=(layout, *data.layouts[1:]), fetched=archive)
        monkeypatch.setattr(cifar, name.upper(), published)
    return folder


def use_mirrors(monkeypatch, *mirrors):
    archive = cifar.CIFAR10.fetched._replace(mirrors=mirrors)
    monkeypatch.setattr(cifar, "CIFAR10", cifar.CIFAR10._replace(fetched=archive))


@contextmanager
def serving(content, length):
    """Run a server that announces ``length`` bytes and closes the connection after ``content``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", SETS)
def test_fetched_once_then_found(mirror, cache, name, monkeypatch, capsys):
    assert len(load_dataset(name).train) == 8
    archive = getattr(cifar, name.upper()).fetched
    assert [*cache.rglob("*.*")] == [cache / name / archive.name]
    assert (cache / name / archive.name).read_bytes() == (mirror / archive.name).read_bytes()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        f"{name}: fetching {archive.name} (0 MiB) from {mirror.as_uri()}/",
        f"{name}: kept in {cache / name}",
    ]
    monkeypatch.setattr(fetch, "fetch_archive", None)  # the second time nothing is fetched
    assert len(load_dataset(name).test) == 4


def test_nothing_is_fetched_with_data_dir(mirror, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no CIFAR-10 in .*empty: put cifar-10-binary.tar.gz"):
        load_dataset("cifar10", tmp_path / "empty")
    assert not cache.exists()


def test_fetched_where_the_users_folder_lacks_it(mirror, tmp_path, cache, monkeypatch):
    (tmp_path / "all").mkdir()
    monkeypatch.setenv("TORCHADDER_DATA", str(tmp_path / "all"))
    assert len(load_dataset("cifar10").train) == 8
    assert not [*(tmp_path / "all").iterdir()]


OTHER = {  # change of the served archive, reported line
    "other bytes": (
        lambda packed: packed[:-1] + b"\x80",
        r"published file \((\S+) of \1 bytes, md5 \w+, expected \w+\)",
    ),
    "less": (lambda packed: packed[:1000], r"published file \(1,000 of \S+ bytes, md5 \w+, expected \w+\)"),
    "nothing": (lambda packed: b"", r"published file \(0 of \S+ bytes, md5 \w+, expected \w+\)"),
    "more": (lambda packed: packed + b"\0", r"published file \(more than \S+ bytes\)"),
}
ADVICE = r"no CIFAR-10 in .*cache.torchadder: put cifar-10-binary.tar.gz or cifar-10-python.tar.gz .* data_dir=DIR$"


def refused(capsys):
    """Return the lines on stderr; the error is one line of advice."""
    with pytest.raises(UserError, match=ADVICE) as caught:
        load_dataset("cifar10")
    assert "\n" not in str(caught.value)
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(("change", "words"), OTHER.values(), ids=OTHER)
def test_anything_else_is_refused_and_not_kept(mirror, cache, change, words, capsys):
    served = mirror / "cifar-10-binary.tar.gz"
    served.write_bytes(change(served.read_bytes()))
    _, line = refused(capsys)
    assert re.fullmatch(rf"cifar10: refused: {re.escape(served.as_uri())}: not the {words}", line)
    assert not cache.exists()


def test_a_connection_that_breaks_leaves_nothing(mirror, cache, monkeypatch, capsys):
    packed = (mirror / "cifar-10-binary.tar.gz").read_bytes()
    with serving(packed[:-100], len(packed)) as url:
        use_mirrors(monkeypatch, url)
        _, line = refused(capsys)
    assert not cache.exists()
    with serving(packed, len(packed)) as url:
        use_mirrors(monkeypatch, url)
        assert len(load_dataset("cifar10").train) == 8
    assert re.match(r"cifar10: (refused: .* not the published file|no answer \(IncompleteRead)", line)


def test_a_long_download_reports_progress_and_leaves_nothing_when_interrupted(mirror, cache, monkeypatch):
    def interrupt(dataset, line):
        if "so far" in line:
            raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "PROGRESS_S", -1)
    monkeypatch.setattr(fetch, "say", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("cifar10")
    assert not cache.exists()


def test_offline_advice(cache, monkeypatch, capsys):
    def unreachable(url, timeout):
        assert timeout <= 10
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", unreachable)
    assert refused(capsys) == [
        "cifar10: fetching cifar-10-binary.tar.gz (162 MiB) from https://www.cs.toronto.edu/~kriz/",
        "cifar10: no answer (no route)",
    ]
    assert not cache.exists()


def test_a_full_disk_leaves_no_partial_file(mirror, cache, fill_disk):
    folder = cache / "cifar10"
    fill_disk("cifar-10-binary.tar.gz")
    with pytest.raises(UserError, match=r"cannot write cifar-10-binary.tar.gz to .*cifar10: No space left on device$"):
        load_dataset("cifar10")
    assert not [*folder.iterdir()]
