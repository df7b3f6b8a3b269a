"""Test the page in Chromium: it draws, zooms, fits narrow screens, and is accessible by keyboard and screen reader."""

import itertools
from dataclasses import replace

import pytest
from tests.contrast import CONTRAST
from tests.lab.report.conftest import ATTACK

from torchadder.lab import report

CHARTS = {"one": 7, "two": 12, "bare": 7}


@pytest.fixture
def open_file(visited):
    """Open a page with all charts drawn; anything that it logs or loads from elsewhere fails the test."""

    def open_page(path, **options):
        url = path.as_uri()
        return visited(url, "html[data-drawn]", lambda requested: requested == url, **options)

    return open_page


@pytest.fixture
def opened(open_file, pages):
    """Open a page by name."""

    def open_page(name, width=1280, scheme="light", **options):
        return open_file(pages[name], viewport={"width": width, "height": 800}, color_scheme=scheme, **options)

    return open_page


def colour(page, selector="body", name="backgroundColor"):
    return page.eval_on_selector(selector, f"e => getComputedStyle(e).{name}")


@pytest.mark.parametrize(("name", "scheme"), [("one", "light"), ("two", "dark"), ("bare", "light")])
def test_charts_are_drawn_contrast_is_high_and_no_name_is_run(opened, name, scheme):
    page = opened(name, scheme=scheme)
    assert page.locator(".chart svg").count() == CHARTS[name]
    assert page.locator("svg .mark-line path").count() >= 2 * CHARTS[name]
    found = page.evaluate(CONTRAST)
    assert found["low"] == []
    assert found["checked"] > 200
    assert page.evaluate("window.pwned") is None
    assert page.locator("img[src=x]").count() == 0
    if name != "two":
        assert page.inner_text("h1") == " ".join(ATTACK.split())


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_narrow_screen_scrolls_in_one_direction(opened, name):
    page = opened(name, width=360)
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    wide = page.eval_on_selector_all(".scroll", "all => all.filter((e) => e.scrollWidth > e.clientWidth).length")
    assert wide > 0
    sizes = page.eval_on_selector_all(".chart svg", "all => all.map((e) => e.getBoundingClientRect().width)")
    assert 250 < min(sizes) <= max(sizes) <= 360


def test_theme_print_and_motion_follow_the_system_and_the_button(opened):
    page = opened("one", scheme="dark", reduced_motion="reduce")
    assert colour(page, "html", "scrollBehavior") == "auto"
    page.emulate_media(reduced_motion="no-preference")
    assert colour(page, "html", "scrollBehavior") == "smooth"
    dark = colour(page)
    page.emulate_media(media="print", color_scheme="dark")
    assert colour(page) == "rgb(255, 255, 255)"
    for selector in ("nav", "#controls", "#theme"):
        assert not page.locator(selector).is_visible()
    page.emulate_media(media="screen")
    axis = colour(page, ".chart svg text", "fill")
    page.get_by_role("button", name="Light theme").click()
    assert colour(page) == "rgb(255, 255, 255)" != dark
    assert colour(page, ".chart svg text", "fill") != axis
    page.get_by_role("button", name="Dark theme").click()
    assert (colour(page), colour(page, ".chart svg text", "fill")) == (dark, axis)
    page.get_by_role("button", name="Light theme").click()
    page.emulate_media(media="print")
    assert colour(page) == "rgb(255, 255, 255)"
    page.emulate_media(media="screen")
    page.reload()
    assert colour(page) == dark


DRAWN = """([figure, epochs, lines]) => {
  const chart = document.querySelector(`[data-figure=${figure}] svg`);
  const labels = [...chart.querySelector(".role-axis-label").querySelectorAll("text")];
  const found = labels.map((e) => +e.textContent).sort((a, b) => a - b);
  return found.join() === epochs.join() && chart.querySelectorAll(".mark-line.role-mark path").length === lines;
}"""


def wait_for(page, epochs, lines):
    """Wait until both charts show these epochs and this number of lines."""
    for figure in ("accuracy", "loss"):
        page.wait_for_function(DRAWN, arg=[figure, epochs, lines])


def test_keys_zoom_hide_lines_and_reset(opened):
    page = opened("two")
    wait_for(page, [1, 2, 3], 4)
    page.get_by_label("from").focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, [2, 3], 4)
    assert page.locator("output").all_inner_texts() == ["2", "3"]
    page.get_by_role("checkbox", name="training").focus()
    page.keyboard.press("Space")
    wait_for(page, [2, 3], 2)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    wait_for(page, [2, 3], 1)
    page.get_by_role("button", name="Show all").focus()
    page.keyboard.press("Enter")
    wait_for(page, [1, 2, 3], 4)


def test_dragging_zooms_both_charts_and_a_pointer_shows_numbers(opened, world):
    page = opened("two")
    chart = page.locator("[data-figure=accuracy] svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.5 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], y, steps=3)
    page.mouse.move(box["x"] + 0.98 * box["width"], y, steps=3)
    page.mouse.up()
    wait_for(page, [2, 3], 4)
    assert page.locator("output").all_inner_texts() == ["2", "3"]
    page.mouse.move(box["x"] + 0.9 * box["width"], y)
    page.wait_for_selector("#vg-tooltip-element.visible")
    text = page.inner_text("#vg-tooltip-element")
    for run in world.values():
        assert f"test\t{run.metrics[2]['test_accuracy']:.2f}" in text
    page.get_by_role("button", name="Show all").click()
    wait_for(page, [1, 2, 3], 4)


def test_a_chart_in_a_closed_part_is_drawn_when_it_opens(open_file, world, tmp_path, monkeypatch):
    monkeypatch.setattr(report.page, "HISTOGRAMS", 2)
    report.write([world["adder"]], tmp_path / "page.html", test=False)
    page = open_file(tmp_path / "page.html")
    assert page.locator(".histograms svg").count() == 2
    page.get_by_text("The other 3 layers").click()
    page.locator(".histograms svg").nth(4).wait_for()  # what polls in JavaScript breaks the policy of the page
    assert min(page.eval_on_selector_all(".chart svg", "all => all.map((e) => e.getBoundingClientRect().width)")) > 100


def test_one_epoch_has_no_curves_and_no_controls(open_file, world, tmp_path):
    run = replace(world["adder"], metrics=world["adder"].metrics[:1])
    report.write([run], tmp_path / "page.html", test=False)
    page = open_file(tmp_path / "page.html")
    assert page.locator("#controls, [data-figure=accuracy]").count() == 0
    assert page.get_by_text(f"{run.metrics[0]['test_loss']:.4f}").is_visible()
    assert page.locator(".histograms svg").count() == 5


def test_the_pointer_shows_a_dash_where_a_shorter_run_has_no_number(open_file, world, tmp_path):
    short = replace(world["conv"], metrics=world["conv"].metrics[:2])
    report.write([world["adder"], short], tmp_path / "page.html", test=False)
    page = open_file(tmp_path / "page.html")
    chart = page.locator("[data-figure=accuracy] svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_selector("#vg-tooltip-element.visible")
    text = page.inner_text("#vg-tooltip-element")
    assert "CNN, test\t–" in text
    assert "NaN" not in text


def test_every_control_is_reached_by_keys_and_shows_its_focus(opened):
    page = opened("one")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") >= 0
    reachable = "a[href], button, input, summary, .scroll"
    count = page.locator(reachable).locator("visible=true").count()
    seen = set()
    for _ in range(count):
        seen.add(page.evaluate(f"[...document.querySelectorAll({reachable!r})].indexOf(document.activeElement)"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Tab")
    assert len(seen) == count > 10
    assert -1 not in seen


def test_structure_for_screen_readers(opened):
    page = opened("two")
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((e) => +e.tagName[1])")
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert page.eval_on_selector_all("[id]", "all => all.length - new Set(all.map((e) => e.id)).size") == 0
    for attribute in ("aria-labelledby", "href"):
        targets = page.eval_on_selector_all(f"[{attribute}]", f"all => all.map((e) => e.getAttribute({attribute!r}))")
        for target in targets:
            if attribute != "href" or target.startswith("#"):
                assert page.locator(f"[id='{target.removeprefix('#')}']").count() == 1
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("table").count() == page.locator(".scroll[role=region][aria-label] table").count() > 5
    assert page.locator(".matrix th[scope=col]").count() == 2 * 12


def test_without_scripts_the_numbers_are_there(browser, pages, world):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["one"].as_uri())
    assert "charts need a browser with scripts enabled" in page.inner_text("main")
    assert not page.locator("#controls").is_visible()
    page.locator("summary").first.click()
    for metrics in world["adder"].metrics:
        assert f"{metrics['test_loss']:.4f}" in page.inner_text("main")
    context.close()
