"""Test the demo page in Chromium: drawing with mouse and keyboard, image files, and no request to other hosts."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image
from tests.lab.demo.conftest import NAMES

from torchadder.lab.demo import DemoClassifier
from torchadder.lab.demo.server import DOCUMENTS

CONTRAST = """names => {
    const style = getComputedStyle(document.documentElement);
    const luminance = name => {
        const hex = style.getPropertyValue(name).trim();
        const parts = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16) / 255);
        const [r, g, b] = parts.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [low, high] = names.map(luminance).sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
}"""


@pytest.fixture
def visit(visited):
    """Open the page of a server; a request to another host fails the test."""

    def open_page(server, **options):
        return visited(server.url, "body[data-ready]", lambda url: url.startswith(server.url), **options)

    return open_page


def drawn(page, *points):
    """Draw a stroke through points of the unit square with the mouse and return the pixels after it."""
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()
    return seen(page)


def seen(page):
    """Return the input of the network that the page shows: uint8 (28, 28)."""
    grey = """() => {
        const copy = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        copy.drawImage(document.getElementById("seen"), 0, 0);
        return [...copy.getImageData(0, 0, 28, 28).data].filter((_, i) => i % 4 === 0);
    }"""
    return np.array(page.evaluate(grey), np.uint8).reshape(28, 28)


def shown(page):
    """Return the columns of the table: names, scores and distances."""
    page.wait_for_selector("tr.best")
    rows = page.evaluate(
        "[...document.getElementById('classes').rows].map(row => [...row.cells].map(c => c.textContent))"
    )
    return [[row[0] for row in rows], [row[2] for row in rows], [row[-1] for row in rows]]


def test_a_drawn_one_is_classified(visit, grey, programs):
    page = visit(grey)
    assert page.inner_text("#result-class") == "–"
    pixels = drawn(page, (0.3, 0.2), (0.3, 0.5), (0.3, 0.6))
    assert pixels.max() == 255
    rows, columns = pixels.any(1).nonzero()[0], pixels.any(0).nonzero()[0]
    assert 18 <= len(rows) <= 21  # like the digits of MNIST: 20 pixels high, upright, centred
    assert 2 <= len(columns) <= 4
    centre = [(pixels * places).sum() / pixels.sum() for places in np.mgrid[:28, :28]]
    assert centre == pytest.approx([13.5, 13.5], abs=0.1)
    expected = DemoClassifier(programs / "grey.tadder").classify(pixels.tobytes())
    best = expected["distances"][int(np.argmax(expected["logits"]))]
    page.wait_for_function(
        "n => document.querySelector('tr.best td:last-child')?.textContent === n", arg=f"{best:,.0f}"
    )
    names, scores, distances = shown(page)
    assert names == [str(digit) for digit in range(10)]
    assert [float(score.replace("−", "-")) for score in scores] == pytest.approx(expected["logits"], abs=0.0051)
    assert [float(distance.replace(",", "")) for distance in distances] == expected["distances"]
    assert page.inner_text("#result-class").startswith(f"{np.argmax(expected['logits'])} ")
    assert " ms per image, 1 thread" in page.inner_text("#time")
    page.wait_for_function("() => document.getElementById('status').textContent.endsWith('%')")  # for screen readers


def test_size_and_position_of_a_drawing_do_not_matter_and_a_dot_stays_small(visit, grey):
    page = visit(grey)
    shape = np.array([(0, 0), (1, 0), (0.4, 1), (0.2, 0.9)])
    found = []
    for size, left, top in ((0.9, 0.05, 0.05), (0.3, 0.6, 0.1)):
        found.append(drawn(page, *(shape * size + (left, top)).tolist()).astype(int))
        page.click("#clear")
    assert abs(found[0] - found[1]).mean() < 3
    assert 4 <= (drawn(page, (0.9, 0.9), (0.901, 0.9)) > 0).sum() <= 16


def test_undo_clear_and_samples(visit, grey):
    page = visit(grey)
    first = drawn(page, (0.3, 0.2), (0.3, 0.8))
    assert (drawn(page, (0.7, 0.2), (0.3, 0.5)) != first).any()
    page.click("#undo")
    assert (seen(page) == first).all()
    page.click("#undo")
    assert page.inner_text("#result-class") == "–"
    assert page.locator("tr.best").count() == 0
    samples = set()
    for digit in range(10):
        page.get_by_role("button", name=f"Sample {digit}").click()
        samples.add(seen(page).tobytes())
    assert len(samples) == 10
    shown(page)
    page.click("#clear")
    assert page.inner_text("#result-class") == "–"


def test_a_one_is_drawn_with_the_keyboard(visit, grey):
    page = visit(grey)
    page.focus("#canvas")
    for _ in range(8):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    for _ in range(15):
        page.keyboard.press("ArrowDown")
    before = seen(page)
    page.keyboard.press("Shift+ArrowRight")
    pixels = seen(page)
    assert (pixels != before).any()
    assert len(pixels.any(1).nonzero()[0]) > 15
    assert len(pixels.any(0).nonzero()[0]) <= 4
    shown(page)
    page.keyboard.press("Control+z")
    assert page.inner_text("#result-class") == "–"
    page.keyboard.press("Space")
    shown(page)
    page.keyboard.press("Delete")
    assert page.inner_text("#result-class") == "–"


def test_an_image_in_colour(visit, serve, programs):
    classifier = DemoClassifier(programs / "colour.tadder")
    page = visit(serve(classifier))
    assert page.inner_text("h1") == "Choose an image"
    assert not page.locator("#canvas").is_visible()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    with page.expect_request("**/classify") as request:
        page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": file.getvalue()})
    assert request.value.post_data_buffer == pixels.transpose(2, 0, 1).tobytes()
    names, scores, _ = shown(page)
    assert names == NAMES  # names with HTML are shown as text
    expected = classifier.classify(request.value.post_data_buffer)["logits"]
    assert [float(score.replace("−", "-")) for score in scores] == pytest.approx(expected, abs=0.0051)
    page.set_input_files("#file", {"name": "b.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_function("() => document.getElementById('problem').textContent !== ''")
    assert page.inner_text("#problem") == "b.png cannot be shown: expected an image"
    assert page.inner_text("#result-class") == "–"


def test_errors_are_shown(visit, grey):
    page = visit(grey)
    page.evaluate('() => { window.fetch = async () => new Response(\'{"error": "no way"}\', {status: 500}) }')
    page.get_by_role("button", name="Sample 1").click()
    page.wait_for_function("() => document.getElementById('problem').textContent === 'No result: no way'")
    page.evaluate("() => { window.fetch = async () => { throw new TypeError('network') } }")
    page.get_by_role("button", name="Sample 2").click()
    page.wait_for_function("() => document.getElementById('problem').textContent.endsWith('still running?')")


def test_a_narrow_screen_shows_everything_with_contrast_and_all_documents_are_used(visit, grey):
    page = visit(grey, viewport={"width": 320, "height": 640})
    page.get_by_role("button", name="Sample 8").click()
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for ink, paper in itertools.product(("--ink", "--muted", "--accent", "--problem"), ("--page", "--paper")):
            assert page.evaluate(CONTRAST, [ink, paper]) >= 4.5, (scheme, ink, paper)
    sources = page.evaluate("performance.getEntriesByType('resource').map(entry => new URL(entry.name).pathname)")
    assert {*DOCUMENTS} - {"/", "/icon.svg"} <= {*sources}
