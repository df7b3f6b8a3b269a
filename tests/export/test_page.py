"""Test the page in Chromium, from disk: what mouse, finger, keyboard, image files and the camera give is classified."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from tests.contrast import CONTRAST
from tests.quant.random_programs import Maker

from torchadder.engine import Classifier
from torchadder.export import export_page
from torchadder.export.page import DIGITS, render
from torchadder.quant import Program

NAMES = ["<b>cat</b>", "dog", "frog"]
WIDTHS = (320, 360, 768, 1440)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return a folder with digits.html, colour.html (3 x 12 x 16 pixels, three classes), and a damaged broken.html."""
    folder = tmp_path_factory.mktemp("pages")
    export_page(DIGITS, folder / "digits.html")
    torch.manual_seed(0)
    maker = Maker(7, sizes=(12, 12), channels=(3, 9), plain=True)
    maker.shapes[0] = (3, 12, 16)
    steps = [maker.layer("conv"), maker.layer("adder"), maker.max_pool()]
    maker.channels = (3, 3)
    program = Program(
        maker.shapes[0], torch.full((3,), 0.05), torch.full((3,), 90.0), [*steps, maker.layer("conv", True)]
    )
    normalisation = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    program.save(folder / "colour.tadder", classes=NAMES, **normalisation)
    export_page(folder / "colour.tadder", folder / "colour.html")
    (folder / "damaged.tadder").write_bytes((folder / "colour.tadder").read_bytes()[:-1])
    (folder / "broken.html").write_text(render((folder / "damaged.tadder").read_bytes(), "damaged.tadder"))
    program.save(folder / "other.tadder")  # does not say how to prepare an image
    return folder


@pytest.fixture
def visit(visited, pages):
    """Open a page from disk by name; what it logs, and any request for another file, fails the test."""

    def open_page(name, **options):
        url = (pages / f"{name}.html").as_uri()
        own = lambda requested: requested == url or requested.startswith(("blob:", "data:"))  # noqa: E731
        return visited(url, "body[data-ready]", own, **options)

    return open_page


def draw(page, *points):
    """Draw a stroke through points of the unit square with the mouse."""
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def pixels_of(page):
    """Return the drawing as the page prepares it, uint8 (28, 28)."""
    return np.array(page.evaluate("[...drawing.pixels(PIXELS)]"), np.uint8).reshape(28, 28)


def settled(page):
    """Wait for the answer to the newest image, and return its logits."""
    page.wait_for_function("() => answer && !isBusy && !newest")
    return page.evaluate("[...answer.logits]")


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def put(page, content, name="a.png"):
    page.evaluate("() => { answer = null; }")
    page.set_input_files("#file", {"name": name, "mimeType": "", "buffer": content})


def expected(path, *images):
    """Return the logits that the engine gives for pixels (C, H, W)."""
    classifier = Classifier(path)
    return [
        classifier.engine(classifier.preprocessing.prepare(pixels, classifier.engine.shape[1:]))[0].tolist()
        for pixels in images
    ]


def test_a_drawing_is_answered_as_by_the_engine(visit):
    page = visit("digits")
    assert page.inner_text("h1") == "Draw a digit"
    assert page.is_visible("#hint")
    assert page.inner_text("#best") == "Nothing drawn yet"
    draw(page, (0.3, 0.2), (0.3, 0.5), (0.3, 0.6))
    logits = settled(page)
    pixels = pixels_of(page)
    rows, columns = pixels.any(1).nonzero()[0], pixels.any(0).nonzero()[0]
    assert 18 <= len(rows) <= 21  # like the digits of MNIST: 20 pixels high, upright, centred
    assert 2 <= len(columns) <= 4
    centre = [(pixels * places).sum() / pixels.sum() for places in np.mgrid[:28, :28]]
    assert centre == pytest.approx([13.5, 13.5], abs=0.1)
    assert [logits] == expected(DIGITS, pixels[None])
    assert page.inner_text("#best").startswith("1")
    assert page.inner_text("#next").startswith("then ")
    cells = page.evaluate("[...classes.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent))")
    assert [float(row[2].replace("−", "-")) for row in cells] == pytest.approx(logits, abs=0.0051)
    distances = page.evaluate("[...answer.accumulators]")
    assert [int(row[3].replace(",", "")) for row in cells] == distances
    page.wait_for_selector("body[data-timed]")
    assert "ms per image" in page.inner_text("#time")
    page.wait_for_function("() => $('status').textContent.startsWith('1, ')")  # for screen readers
    assert not page.is_visible("#hint")


def test_images_pixel_for_pixel(visit):
    """Ten grey images of 28 x 28: the same logits, all of them."""
    page = visit("digits")
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    found = []
    for image in images:
        put(page, png(image))
        found.append(settled(page))
    assert found == expected(DIGITS, *images[:, None])


def test_dark_strokes_on_light_paper_are_offered_an_exchange(visit):
    page = visit("digits")
    image = np.full((28, 28), 250, np.uint8)
    image[5:23, 13:15] = 20
    put(page, png(image))
    assert [settled(page)] == expected(DIGITS, image[None])
    assert "drawn on a light ground, the training images on a dark one" in page.inner_text("#ground")
    page.click("#invert")
    page.wait_for_function("() => document.body.dataset.answered === '1'")
    assert [settled(page)] == expected(DIGITS, 255 - image[None])
    page.click("#clear")
    assert not page.is_visible("#ground")


def test_size_and_position_of_a_drawing_do_not_matter_and_a_dot_stays_small(visit):
    page = visit("digits")
    shape = np.array([(0, 0), (1, 0), (0.4, 1), (0.2, 0.9)])
    found = []
    for size, left, top in ((0.9, 0.05, 0.05), (0.3, 0.6, 0.1)):
        draw(page, *(shape * size + (left, top)).tolist())
        found.append(pixels_of(page).astype(int))
        page.click("#clear")
    assert abs(found[0] - found[1]).mean() < 3
    draw(page, (0.9, 0.9), (0.901, 0.9))
    assert 4 <= (pixels_of(page) > 0).sum() <= 16


def test_undo_clear_and_samples(visit):
    page = visit("digits")
    draw(page, (0.3, 0.2), (0.3, 0.8))
    first = settled(page)
    draw(page, (0.7, 0.2), (0.3, 0.5))
    assert settled(page) != first
    page.click("#undo")
    page.wait_for_function("logits => answer && String([...answer.logits]) === String(logits)", arg=first)
    page.click("#undo")
    assert page.inner_text("#best") == "Nothing drawn yet"
    for digit in range(10):
        page.get_by_role("button", name=f"Sample {digit}").click()
        page.wait_for_function("digit => document.body.dataset.answered === digit", arg=str(digit))
    page.click("#clear")
    assert page.is_visible("#hint")


def test_the_keyboard_draws(visit):
    page = visit("digits")
    page.focus("#canvas")
    for _ in range(8):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    for _ in range(15):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+ArrowRight")
    settled(page)
    assert page.get_attribute("body", "data-answered") == "1"
    page.keyboard.press("Control+z")
    assert page.inner_text("#best") == "Nothing drawn yet"
    page.keyboard.press("Space")
    settled(page)
    page.keyboard.press("Delete")
    assert page.inner_text("#best") == "Nothing drawn yet"
    for control in ("Undo", "Clear", "Layer", "Class"):  # all have a name
        assert page.get_by_label(control).or_(page.get_by_role("button", name=control)).first.is_visible()


def test_a_finger_draws(visit):
    page = visit("digits", has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800})
    box = page.locator("#canvas").bounding_box()
    session = page.context.new_cdp_session(page)
    for step in range(9):
        place = {"x": box["x"] + 0.5 * box["width"], "y": box["y"] + (0.2 + step * 0.07) * box["height"]}
        session.send(
            "Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": [place]}
        )
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    settled(page)
    assert page.get_attribute("body", "data-answered") == "1"
    assert page.evaluate("scrollY") == 0


def test_where_filter_and_patch_differ(visit):
    page = visit("digits")
    page.get_by_role("button", name="Sample 8").click()
    settled(page)
    page.wait_for_function("() => compared")
    distances = page.evaluate("[...answer.accumulators]")
    assert f"112 differences add up to {distances[8]}, which becomes score" in page.inner_text("#sum")
    page.locator("#classes button").nth(3).click()
    page.wait_for_function("distance => compared.sum === distance", arg=distances[3])
    assert page.locator("#classes button[aria-pressed=true]").inner_text() == "3"
    page.locator("#steps li").nth(2).locator("canvas").nth(5).click()  # filter 5 of the second layer, in the middle
    page.wait_for_function("() => compared.terms.length === 24 * 9")
    chosen = page.evaluate("chosen")
    assert (chosen["step"], chosen["filter"], chosen["row"], chosen["column"]) == (2, 5, 3, 3)
    weight = Program.load(DIGITS).steps[2].weight[5].permute(1, 2, 0).flatten().tolist()
    found = page.evaluate("compared")
    assert found["filter"] == weight
    assert found["terms"] == [abs(x - w) for x, w in zip(found["patch"], weight, strict=True)]
    page.fill("#row", "99")
    page.press("#row", "Tab")
    page.wait_for_function("() => chosen.row === 6")
    page.select_option("#layer", "0")
    page.wait_for_function("() => compared.terms.length === 16")


def test_an_image_in_colour_and_other_files(visit, pages):
    page = visit("colour")
    assert page.inner_text("h1") == "Choose an image"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    put(page, png(pixels))
    assert [settled(page)] == expected(pages / "colour.tadder", pixels.transpose(2, 0, 1))
    assert page.evaluate("[...classes.tBodies[0].rows].map((row) => row.cells[0].textContent)") == NAMES  # HTML is text
    put(page, b"no image", "b.png")
    page.wait_for_function("() => $('problem').textContent !== ''")
    assert page.inner_text("#problem") == "b.png cannot be shown: expected an image, or a .tadder file"
    assert page.inner_text("#best") == "No image yet"
    for name, words in (
        ("damaged", "data offset is"),
        ("other", "does not say how to prepare an image"),
    ):
        put(page, (pages / f"{name}.tadder").read_bytes(), f"{name}.tadder")
        page.wait_for_function("words => $('problem').textContent.includes(words)", arg=words)
        assert page.inner_text("#problem").startswith(f"{name}.tadder cannot be used: ")
    put(page, DIGITS.read_bytes(), "digits.tadder")
    page.wait_for_function("() => $('title').textContent === 'Draw a digit'")
    draw(page, (0.5, 0.2), (0.5, 0.8))
    settled(page)
    assert page.inner_text("#problem") == ""


def test_the_camera(visit):
    page = visit("colour")
    page.evaluate("""() => {
        const source = Object.assign(document.createElement("canvas"), {width: 64, height: 48});
        const context = source.getContext("2d");
        setInterval(() => context.fillRect(0, 0, 64, 48), 20);
        Object.defineProperty(navigator, "mediaDevices",
            {value: {getUserMedia: async () => source.captureStream()}});
        camera.hidden = false;
    }""")
    page.click("#camera")
    page.wait_for_selector("body[data-answered]")
    page.click("#camera")
    assert page.inner_text("#camera") == "Camera"
    assert page.evaluate("stream") is None


def test_every_screen_shows_everything_with_contrast(visit):
    page = visit("digits")
    page.get_by_role("button", name="Sample 8").click()
    settled(page)
    for width, scheme in itertools.product(WIDTHS, ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = page.evaluate(CONTRAST)
        assert found["checked"] > 60
        assert found["low"] == [], (width, scheme)
    page.click("#clear")
    assert page.evaluate(CONTRAST)["low"] == []


def test_names_cannot_add_markup(visit, pages):
    name = '"><script>window.pwned = 1<.tadder'
    (pages / name).write_bytes((pages / "colour.tadder").read_bytes())
    export_page(pages / name, pages / "named.html")
    page = visit("named")
    assert page.evaluate("window.pwned") is None
    assert page.title() == f"Choose an image · {name}"


def test_a_page_whose_own_program_is_damaged_says_so_and_takes_another(visit):
    page = visit("broken")
    assert page.inner_text("#problem").startswith("damaged.tadder cannot be used: ")
    later = ("#answer-section", "#more", "#compare-title", "#inside-title", "footer")
    assert not any(page.is_visible(part) for part in later)
    put(page, DIGITS.read_bytes(), "digits.tadder")
    page.wait_for_selector("#answer-section:visible")
    assert all(page.is_visible(part) for part in later)
    draw(page, (0.5, 0.2), (0.5, 0.8))
    settled(page)


def test_another_program_keeps_the_drawing_and_names_its_own_classes(visit, pages):
    page = visit("digits")
    draw(page, (0.5, 0.2), (0.5, 0.8))
    logits = settled(page)
    program = Program.load(DIGITS)
    last = program.steps[-1]
    last.weight, last.epilogue.scale, last.epilogue.bias = (
        last.weight[:2],
        last.epilogue.scale[:2],
        last.epilogue.bias[:2],
    )
    program.save(pages / "two.tadder", mean=0.1307, std=0.3081, classes=["disc", "square"])
    put(page, (pages / "two.tadder").read_bytes(), "two.tadder")
    assert settled(page) == logits[:2]
    assert page.evaluate("[...$('filter').options].map((option) => option.textContent)") == ["disc", "square"]
    assert page.input_value("#filter") == str(int(logits[1] > logits[0]))
