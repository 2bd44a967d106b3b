"""Pages in a real browser: charts are drawn, tables sort and filter, and nothing else runs."""

import io
import shutil
import threading

import handmade
import handmade_outputs
import numpy as np
import pytest
import uvicorn
from handmade_outputs import HOSTILE
from PIL import Image
from planted import ALL, SIZE, planted, striped

from manifpt.attribution.model import trained
from manifpt.report.crawl_page import crawl_page
from manifpt.report.evaluation_page import PageOptions, evaluation_page
from manifpt.report.explanation import Explainer, explanation, opened_image
from manifpt.report.explanation_page import explanation_page
from manifpt.report.robustness_page import robustness_page
from manifpt.viewer.output import CrawlOutput
from manifpt.viewer.web_server import application

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="as playwright")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium"),
]
# Pages, and the charts of each.
CHARTS = {"evaluation": 9, "crawl": 8, "robustness": 2, "explanation": 0, "large": 6}
PHONE = {"width": 400, "height": 800}
# The planted tile of the explained image, of WIDTH x HEIGHT pixels.
LEFT, TOP, WIDTH, HEIGHT = 32, 16, 64, 48


@pytest.fixture(scope="module")
def files(finished, tmp_path_factory):
    """Pages of finished outputs, of an explained image, and of a crawl of images in tiles."""
    folder = tmp_path_factory.mktemp("browser")
    beside = PageOptions(robustness=finished.robustness)
    made = {
        "evaluation": evaluation_page(finished.evaluation, beside),
        "crawl": crawl_page(finished.crawl, PageOptions()),
        "robustness": robustness_page(finished.robustness, PageOptions()),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trained, "network_outputs", striped)
        model = handmade.attributor(folder / "model", tiles=ALL)
        uri = str(folder / f"{HOSTILE[0]}.png".replace("/", "|"))
        Image.fromarray(planted(LEFT, TOP, WIDTH, HEIGHT)).save(uri)
        explainer = Explainer.open(model)
        table = opened_image(uri, explainer)
        found = explanation(explainer, table, ["blur:1"])
        made["explanation"] = explanation_page(explainer, table, found)
        crawl = handmade_outputs.crawl(folder, model, handmade.CLASSES, 12, 48)
        made["large"] = crawl_page(crawl, PageOptions())
    for name, data in made.items():
        (folder / f"{name}.html").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def viewer(finished):
    """The address at which the crawl is served."""
    app = application(CrawlOutput.open(finished.crawl), (str(finished.folder / "crawl"),))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.05)
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def visited(browser):
    """Visit an address; its pages say nothing, ask no other place, and run no stranger's script."""
    said: list[str] = []

    def visiting(address, own, **options):
        page = browser.new_page(**options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on(
            "request",
            lambda request: said.append(request.url) if not request.url.startswith(own) else None,
        )
        page.goto(address)
        return page

    yield visiting
    for context in browser.contexts:
        for page in context.pages:
            assert page.evaluate("window.pwned") is None
            page.close()
    assert said == []


@pytest.fixture
def opened(visited, files):
    """Open a page of a name, and wait for its charts."""

    def opening(name, **options):
        page = visited(f"file://{files}/{name}.html", ("data:", "file:"), **options)
        page.wait_for_selector("html[data-charts]", timeout=200_000)
        return page

    return opening


def check_accessible(page):
    """No rule of WCAG 2.1, levels A and AA, that axe can check is broken: contrast, names, keys."""
    rules = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    found = axe.Axe().run(page, options={"runOnly": rules, "resultTypes": ["violations"]})
    broken = [
        (rule["id"], *node["target"], *(check["message"] for check in node["any"]))
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]
    assert broken == []


def pixels_of(locator) -> np.ndarray:
    """What the browser has drawn of an element, H x W x 3."""
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_are_drawn_in_both_themes_and_on_a_phone(opened, name, scheme):
    page = opened(name, color_scheme=scheme, viewport=PHONE)
    assert page.evaluate("document.documentElement.dataset.charts") == str(CHARTS[name])
    drawn = page.locator("figure.chart")
    assert drawn.count() == CHARTS[name]
    for n in range(CHARTS[name]):
        assert drawn.nth(n).locator(".main-svg .trace, .main-svg .hm, .main-svg .point").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    check_accessible(page)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("name", ["evaluation", "explanation"])
def test_a_dark_page_is_printed_on_white(opened, name):
    page = opened(name, color_scheme="dark")
    page.click("#theme")
    page.click("#theme")  # dark by choice, and not by the system alone
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.pdf().startswith(b"%PDF")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    check_accessible(page)
    for selector in ("body", "section"):
        colour = page.evaluate(
            f"getComputedStyle(document.querySelector('{selector}')).backgroundColor"
        )
        assert colour == "rgb(255, 255, 255)"
    ink = page.evaluate("getComputedStyle(document.querySelector('h2')).color")
    texts = page.locator(".main-svg .xtick text")
    assert texts.count() == 0 or ink in {
        texts.nth(n).evaluate("text => getComputedStyle(text).fill") for n in range(3)
    }
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator("nav").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_rows_sort_search_and_filter_also_by_keys(opened):
    page = opened("crawl")
    head = page.locator("#row-table thead button", has_text="unknown p")
    column = head.evaluate("button => button.parentElement.cellIndex")
    cells = f"all => all.map(row => +row.cells[{column}].dataset.value)"
    rows = page.locator("#row-table tbody tr")
    head.focus()
    page.keyboard.press("Enter")
    values = rows.evaluate_all(cells)
    assert values == sorted(values)
    page.keyboard.press("Enter")
    assert rows.evaluate_all(cells) == sorted(values, reverse=True)
    tools = page.locator("[data-filters='#row-table tbody tr']")
    shown = page.locator("#row-table tbody tr:not([hidden])")
    assert shown.count() == 60
    tools.locator("select[name=decision]").select_option("unsure")
    assert shown.count() == 15
    tools.locator("input").fill("onerror")
    assert 0 < shown.count() < 15
    assert tools.locator("output").text_content() == f"{shown.count()} of 60 shown"


def test_the_first_key_leads_past_the_navigation(opened):
    page = opened("crawl")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Go to the results"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#main"


def test_names_with_tags_are_text_in_legends_and_under_the_pointer(opened):
    page = opened("evaluation")
    legend = page.locator("figure.chart .legendtext", has_text="onerror").first
    assert legend.text_content() == HOSTILE[0]
    # The ids of images of that source begin with its name.
    plot = page.locator("#map .plot")
    plot.scroll_into_view_if_needed()
    names = plot.evaluate("plot => plot.data.map(trace => trace.name)")
    place = next(n for n, name in enumerate(names) if "onerror" in name)
    plot.evaluate(f"plot => Plotly.Fx.hover(plot, [{{curveNumber: {place}, pointNumber: 0}}])")
    label = plot.locator(".hoverlayer .hovertext")
    label.wait_for(timeout=10_000)
    assert f"source {HOSTILE[0]}" in label.text_content()
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 900}])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_tiles_that_decided_are_outlined_where_they_are(opened, viewport, scheme):
    page = opened("explanation", viewport=viewport, color_scheme=scheme)
    figure = page.locator(".outlined.wide-picture")
    figure.scroll_into_view_if_needed()
    picture = figure.locator("img").bounding_box()
    assert picture["width"] <= viewport["width"]
    assert picture["width"] / picture["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.02)
    scale = picture["width"] / WIDTH
    rows = page.locator("#tile-table tbody tr")
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    tiles = figure.locator("i.tile")
    assert tiles.count() == len(cells) == ALL
    # The table has the strongest first; outlines are drawn in the reverse order, so it is on top.
    for tile, (_, x, y, *_) in zip(reversed(tiles.all()), cells, strict=True):
        box = tile.bounding_box()
        assert box["x"] - picture["x"] == pytest.approx(int(x) * scale, abs=1)
        assert box["y"] - picture["y"] == pytest.approx(int(y) * scale, abs=1)
        assert box["width"] == pytest.approx(SIZE * scale, abs=1)
        assert box["height"] == pytest.approx(SIZE * scale, abs=1)
    assert cells[0][1:3] == [str(LEFT), str(TOP)]
    widths = tiles.evaluate_all("all => all.map(i => parseFloat(getComputedStyle(i).borderWidth))")
    assert widths[-1] > max(widths[:-1])
    styles = tiles.evaluate_all("all => all.map(i => getComputedStyle(i).borderTopStyle)")
    assert styles == ["dashed"] * (ALL - 1) + ["solid"]
    drawn = pixels_of(figure.locator(".tiles"))
    left, top = round(LEFT * scale) + 2, round((TOP + SIZE / 2) * scale)
    red, green, blue = drawn[top, left]  # in the middle of the strongest outline's left side
    assert red > 200
    assert 90 < green < 200
    assert blue < 80
    middle = drawn[top, round((LEFT + SIZE / 2) * scale)]
    assert abs(middle - (red, green, blue)).max() > 40  # the tile itself is seen
    alt = figure.locator("img").get_attribute("alt")
    assert f"The strongest for stripes is at x {LEFT}, y {TOP}" in alt


def test_the_table_of_tiles_sorts(opened):
    page = opened("explanation")
    page.locator("#tile-table thead button", has_text="log-probability").click()
    rows = page.locator("#tile-table tbody tr")
    values = rows.evaluate_all("all => all.map(row => +row.cells[4].dataset.value)")
    assert values == sorted(values)
    assert rows.last.locator("td").all_inner_texts()[1:3] == [str(LEFT), str(TOP)]


def test_examples_of_large_images_have_outlines_inside_their_pictures(opened):
    page = opened("large", viewport=PHONE)
    figures = page.locator(".example .outlined")
    assert 0 < figures.count() <= 12
    for figure in figures.all():
        figure.scroll_into_view_if_needed()
        picture = figure.locator("img").bounding_box()
        assert figure.locator("i.tile").count() == 9
        for tile in figure.locator("i.tile").all():
            box = tile.bounding_box()
            for side, along in (("x", "width"), ("y", "height")):
                assert box[side] >= picture[side] - 1
                assert box[side] + box[along] <= picture[side] + picture[along] + 1
    keys = page.locator("#examples .tile.key")
    assert keys.count() == 5


def test_the_viewer_leads_from_counts_to_rows_to_an_image(visited, viewer):
    page = visited(viewer, ("data:", viewer), viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.click("nav >> text=Rows")
    page.select_option("select[name=decision]", "unsure")
    page.fill("input[name=text]", "onerror")
    page.click("button:has-text('Show')")
    rows = page.locator("tbody tr")
    assert 0 < rows.count() < 15
    assert {text.strip() for text in rows.locator("td:nth-child(3)").all_inner_texts()} == {
        "unsure"
    }
    assert page.locator("img[src=x]").count() == 0
    rows.locator("a[href^='/row']", has_text="onerror").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/row?at=*")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_viewer_shows_odd_names_and_captions_as_text(visited, viewer, scheme):
    page = visited(viewer, ("data:", viewer), color_scheme=scheme)
    check_accessible(page)
    for address in ("/rows", "/row?at=0.1", "/groups", "/quarantine"):
        page.goto(viewer + address)
        shown = page.locator("body").inner_text()
        assert "<script>window.pwned=1</script>" in shown
        assert page.locator("main script, main svg[onload], img[src=x]").count() == 0
        check_accessible(page)
    page.goto(f"{viewer}/row?at=0.1")
    caption = page.locator("dt", has_text="<i>caption").locator("xpath=following-sibling::dd[1]")
    assert caption.inner_text() == HOSTILE[1]
