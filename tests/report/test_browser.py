"""Pages in a real browser: charts are drawn, tables sort and filter, and nothing else runs."""

import shutil

import handmade
import handmade_outputs
import pytest

from manifpt.report.crawl_page import crawl_page
from manifpt.report.evaluation_page import PageOptions, evaluation_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")
UNKNOWN = "<img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    model = handmade.attributor(folder / "model")
    evaluation = handmade_outputs.evaluation(folder, handmade.CLASSES, [UNKNOWN])
    crawl = handmade_outputs.crawl(folder, model, handmade.CLASSES)
    (folder / "evaluation.html").write_bytes(evaluation_page(evaluation, PageOptions()))
    (folder / "crawl.html").write_bytes(crawl_page(crawl, PageOptions()))
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def opened(browser, files):
    """Open a page of a name; nothing was said or asked for, and no stranger's script ran."""
    said: list[str] = []

    def opening(name, **options):
        page = browser.new_page(**options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.on(
            "request",
            lambda request: (
                said.append(request.url) if not request.url.startswith(("data:", "file:")) else None
            ),
        )
        page.goto(f"file://{files}/{name}.html")
        page.wait_for_selector("html[data-charts]", timeout=60_000)
        return page

    yield opening
    for context in browser.contexts:
        for page in context.pages:
            assert page.evaluate("window.pwned") is None
            page.close()
    assert said == []


@pytest.mark.parametrize(("name", "charts"), [("evaluation", 7), ("crawl", 5)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_are_drawn_in_both_themes_and_on_a_phone(opened, name, charts, scheme):
    page = opened(name, color_scheme=scheme, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.dataset.charts") == str(charts)
    drawn = page.locator("figure.chart")
    assert drawn.count() == charts
    for n in range(charts):
        assert drawn.nth(n).locator(".main-svg .trace, .main-svg .hm, .main-svg .point").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_rows_sort_search_and_filter_also_by_keys(opened):
    page = opened("crawl")
    head = page.locator("#row-table thead button", has_text="unknown p")
    cells = (
        "[...document.querySelectorAll('#row-table tbody tr')].map(r => +r.cells[7].dataset.value)"
    )
    head.focus()
    page.keyboard.press("Enter")
    values = page.evaluate(cells)
    assert values == sorted(values)
    page.keyboard.press("Enter")
    assert page.evaluate(cells) == sorted(values, reverse=True)
    tools = page.locator("[data-filters='#row-table tbody tr']")
    shown = page.locator("#row-table tbody tr:not([hidden])")
    assert shown.count() == 60
    tools.locator("select[name=decision]").select_option("unsure")
    assert shown.count() == 15
    tools.locator("input").fill("onerror")
    assert 0 < shown.count() < 15
    assert tools.locator("output").text_content() == f"{shown.count()} of 60 shown"


def test_names_with_tags_are_text_under_the_pointer_too(opened):
    page = opened("evaluation")
    legend = page.locator("figure.chart .legendtext", has_text="onerror").first
    assert legend.text_content() == UNKNOWN
    assert page.locator("img[src=x]").count() == 0
