"""Measure the page of torchadder demo in Chromium: its size, first paint, time per image, and its answers.

    python benchmarks/page.py                                  # writes results/page.json

The page is opened from disk, alternating with a page of one word, whose first paint is the browser's own. Time per
image is what the page shows: the median of up to 51 samples in its worker. The first test images of MNIST are given to
the page as PNG files, pixel for pixel, and its logits are compared with those of the engine. The networks are
pico_wide, which ships, and an untrained LeNet-5-BN: neither size nor time depends on the weights. Needs playwright and
a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from torchadder.data.mnist import MNIST, find_files, read_idx
from torchadder.engine import Classifier
from torchadder.export import export_page
from torchadder.export.page import DIGITS
from torchadder.lab import record
from torchadder.lab.bench.networks import with_statistics
from torchadder.models import create_model
from torchadder.quant import quantize

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
REST = 0.7  # seconds after a page is closed: the browser still frees it
ONE_WORD = "<!doctype html><html lang=en><title>word</title><body>word"
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SETTLED = "() => answer && !isBusy && !newest"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with the files of MNIST")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "page.json")
    options = parser.parse_args()
    files = find_files(MNIST, options.data)
    if files is None:
        parser.error("needs the files of MNIST: give their folder as --data, or train a recipe, which fetches them")
    digits = read_idx(files[2])[: options.images]  # of the test images
    executable = next(filter(None, map(shutil.which, NAMES)))
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        version = f"Chromium {browser.version}"
        programs = {"pico_wide": DIGITS, "lenet5bn": untrained_lenet(Path(name) / "lenet5bn.tadder")}
        rows = [measure(browser, model, file, digits, options.repetitions) for model, file in programs.items()]
        browser.close()
    for row in rows:
        print(
            f"{row['model']}: {row['bytes']:,} bytes, first paint {row['first_paint_ms']:.0f} ms "
            f"(one word: {row['one_word_first_paint_ms']:.0f}), "
            f"{row['image_ms']:.2f} ms per image, {row['equal']} of {row['images']} answers equal"
        )
    load = os.getloadavg()[0]
    record.write(options.out, record.make("page", options.repetitions, rows, browser=version, load=load))
    return 0


def untrained_lenet(file: Path) -> Path:
    torch.manual_seed(0)
    images = (torch.rand(64, 1, 32, 32) - 0.1307) / 0.3081
    model = with_statistics(create_model("lenet5bn"), images)
    quantize(model, [images], method="max").save(file, mean=0.1307, std=0.3081)
    return file


def measure(browser: Browser, model: str, file: Path, digits: np.ndarray, repetitions: int) -> dict[str, Any]:
    """Return the row of one page. The first repetition is not counted: the browser starts processes."""
    written = file.with_name("page.html") if file != DIGITS else Path(tempfile.mkdtemp()) / "page.html"
    export_page(file, written)
    word = written.with_name("word.html")
    word.write_text(ONE_WORD)
    word_paints, paints, times = [], [], []
    for repetition in range(repetitions + 1):
        page = opened(browser, word)
        page.wait_for_function(FIRST_PAINT)
        word_paint = page.evaluate(FIRST_PAINT)
        close(page)
        page = opened(browser, written)
        page.wait_for_selector("body[data-timed]")
        if repetition:
            word_paints.append(word_paint)
            paints.append(page.evaluate(FIRST_PAINT))
            times.append(float(page.get_attribute("body", "data-timed") or "nan"))
        if repetition < repetitions:
            close(page)
    classifier = Classifier(file, 1)
    equal = 0
    for digit in digits:
        png = io.BytesIO()
        Image.fromarray(digit).save(png, "PNG")
        page.evaluate("() => { answer = null; }")
        page.set_input_files("#file", {"name": "digit.png", "mimeType": "image/png", "buffer": png.getvalue()})
        page.wait_for_function(SETTLED)
        expected = classifier.engine(classifier.preprocessing.prepare(digit[None], (32, 32)))[0].tolist()
        equal += page.evaluate("[...answer.logits]") == expected
    page.close()
    return {
        **{"model": model, "bytes": written.stat().st_size, "images": len(digits), "equal": equal},
        **{"first_paint_ms": statistics.median(paints), "image_ms": statistics.median(times)},
        **{"one_word_first_paint_ms": statistics.median(word_paints)},
        **{"first_paints_ms": paints, "images_ms": times, "one_word_first_paints_ms": word_paints},
    }


def opened(browser: Browser, file: Path) -> Page:
    page = browser.new_page()
    page.goto(file.as_uri())
    return page


def close(page: Page) -> None:
    page.close()
    time.sleep(REST)


if __name__ == "__main__":
    sys.exit(main())
