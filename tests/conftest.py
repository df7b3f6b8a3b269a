"""Define what several folders of tests share: a tiny data set with a recipe, finished runs, a browser."""

import errno
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from torchadder.data import Dataset, Split
from torchadder.data import registry as datasets
from torchadder.data.registry import Normalization
from torchadder.environment import available_cores
from torchadder.train import RECIPES, Recipe, Run, get_recipe, train

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:  # they share the cores, also with the commands that tests start
    threads = max(1, available_cores() // WORKERS)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def own_compilations(tmp_path_factory):
    """Give each session its own compile cache: torch finds cached code by operator names, whatever these now do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function (name, make) -> folder, which make(folder) has filled, once for all processes of pytest.

    For what takes many seconds, and tests only read.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if WORKERS > 1 else root

    def folder_of(name, make):
        folder = root / name
        with FileLock(f"{folder}.lock"):
            if not (done := root / f"{name}.done").exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture
def fill_disk(monkeypatch):
    """Return a function that lets the next write to files of a name fail as on a full disk."""

    def fill(name):
        replace = os.replace

        def fail(source, target):
            if Path(target).name != name:
                return replace(source, target)
            monkeypatch.setattr(os, "replace", replace)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", fail)

    return fill


@contextmanager
def registered(name, load):
    """Register a data set and run on one thread inside a with block, for fixtures of a session."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(datasets._DATASETS, name, load)
        yield
    torch.set_num_threads(threads)


def tiny(data_dir=None):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 1, 32, 32, generator=generator)

    def split(n):
        labels = torch.randint(0, 10, (n,), generator=generator)
        return Split(centres[labels] + 0.5 * torch.randn(n, 1, 32, 32, generator=generator), labels)

    return Dataset("tiny", 10, 1, split(50), split(30))


def patterns(name, noise, train, test, classes):
    """Return a data set of ten noisy patterns: uint8 pixels with a normalisation and class names, as in real ones."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 1, 32, 32, generator=generator)
    normalization = Normalization.of([0.5], [0.25])

    def split(n):
        labels = torch.randint(0, 10, (n,), generator=generator)
        images = 50 * (centres[labels] + noise * torch.randn(n, 1, 32, 32, generator=generator)) + 128
        return Split(images.clamp(0, 255).byte(), labels, normalization)

    return Dataset(name, 10, 1, split(train), split(test), classes=classes)


TINY = Recipe("lenet5bn-tiny", model="lenet5bn", dataset="tiny", epochs=3, batch_size=16)


@pytest.fixture
def tiny_recipe(monkeypatch):
    monkeypatch.setitem(datasets._DATASETS, "tiny", tiny)
    monkeypatch.setitem(RECIPES, TINY.name, TINY)
    return TINY


@pytest.fixture
def one_thread(monkeypatch):
    """Run on one CPU thread: with layers this small threads mostly wait, and a GPU gives no exact repetition."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trained(tiny_recipe, one_thread, tmp_path):
    """Return a function that trains the tiny recipe for two epochs: (folder, **changes) -> run directory."""

    def make(folder="run", **changes):
        path = tmp_path / folder
        train(Run.open(path, get_recipe(tiny_recipe.name, {"epochs": 2, **changes})))
        return path

    return make


ENVIRONMENT = {
    "torchadder": "0.1.0",
    "torch": "2.13.0",
    "numpy": "2.4.0",
    "python": "3.11.7",
    "platform": "Linux",
    "processor": "Abacus 3000",
    "threads": 1,
    "kernels": "avx2",
}


@pytest.fixture
def finished(tmp_path):
    """Return a function that writes a run directory without a model; its accuracies by epoch are those given."""

    def write(name, *accuracies, environment=None, epochs=None, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        recipe = Recipe("lenet5bn-mnist", "lenet5bn", "mnist", epochs=epochs or len(accuracies), **changes)
        (folder / "recipe.json").write_text(recipe.to_json())
        command = f"torchadder train lenet5bn-mnist --op {recipe.op} --data /data/mnist --out {folder}"
        about = {"command": command, **ENVIRONMENT, **(environment or {})}
        (folder / "environment.json").write_text(json.dumps(about))
        rows = [
            {
                **{"epoch": epoch, "test_accuracy": accuracy, "seconds": 60.0 + epoch},
                **{"images_per_second": 1000.0 + epoch, "peak_rss_mib": 500.0 + epoch},
            }
            for epoch, accuracy in enumerate(accuracies, start=1)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.utime(folder / "metrics.jsonl", (1592150000, 1592150000))  # 2020-06-14
        torch.save({"epoch": len(rows), "best": {}, "seconds": 0.0}, folder / "last.pt")
        return folder

    return write


QUIET = [  # the browser makes no connection of its own
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    """Start the headless Chromium of this machine, driven by playwright; skip the test if there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"needs a browser on the PATH: {', '.join(names)}")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=executable, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def visited(browser):
    """Return a function that opens a page: (url, ready, is_own, **options) -> page, once selector `ready` is there.

    The test fails if the page writes to the console, or requests a URL for which `is_own(url)` is false.
    """
    pages, noise = [], []

    def visit(url, ready, is_own, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.on("dialog", lambda dialog: noise.append(dialog.message))
        page.on("request", lambda request: is_own(request.url) or noise.append(request.url))
        page.goto(url)
        page.wait_for_selector(ready)
        return page

    yield visit
    for page in pages:
        page.close()
    assert noise == []
