"""Pages in a real browser: charts are drawn, tables sort and filter, and nothing else runs."""

import shutil
import threading

import handmade
import handmade_outputs
import pytest
import uvicorn

from manifpt.report.crawl_page import crawl_page
from manifpt.report.evaluation_page import PageOptions, evaluation_page
from manifpt.viewer.output import CrawlOutput
from manifpt.viewer.web_server import application

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
def viewer(files):
    """The address at which the crawl is served."""
    app = application(CrawlOutput.open(str(files / "verdicts")), (str(files / "crawl"),))
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
        page.wait_for_selector("html[data-charts]", timeout=60_000)
        return page

    return opening


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


def test_the_viewer_leads_from_counts_to_rows_to_an_image(visited, viewer):
    page = visited(viewer, ("data:", viewer), viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
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


def test_the_viewer_shows_odd_names_as_text(visited, viewer):
    page = visited(viewer, ("data:", viewer))
    for address in ("/rows", "/groups", "/quarantine"):
        page.goto(viewer + address)
        shown = page.locator("body").inner_text()
        assert "<script>window.pwned=1</script>" in shown
        assert page.locator("main script, main svg[onload], img[src=x]").count() == 0
