"""Pages of handmade outputs: all sections are there, and what strangers wrote does nothing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import handmade
import handmade_outputs
import pytest

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.jobs import report
from manifpt.report import page as pages
from manifpt.report.crawl_page import crawl_page
from manifpt.report.evaluation_page import PageOptions, evaluation_page
from manifpt.report.page import Figure, Page, rendered
from manifpt.report.page_provenance import FoundAttributor, audit_of
from manifpt.report.robustness_page import robustness_page


class Parsed(HTMLParser):
    """The elements of a page as a browser sees them: tags, attributes, ids, texts of scripts."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self.feed(data.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.scripts += [dict(attrs).get("type", "")] if tag == "script" else []

    @property
    def ids(self):
        return {value for name, value in self.attributes if name == "id"}


TAGS = set(
    """html head meta title style body a header h1 h2 h3 p code ul li span b div nav button main
    section table caption thead tbody tr th td figure figcaption img article select option label
    output input details summary dl dt dd strong i br footer script""".split()
)


def check_harmless(data: bytes, charts: int) -> Parsed:
    """Only our elements, no handler, nothing from elsewhere, and only our script."""
    found = Parsed(data)
    assert set(found.tags) <= TAGS
    for name, value in found.attributes:
        assert not name.startswith("on")
        assert name != "src" or value.startswith("data:image/png;base64,")
        assert name != "href" or value.startswith("#")
    assert sorted(found.scripts) == sorted(
        ["", "application/octet-stream", *["application/json"] * charts]
    )
    policy = next(v for n, v in found.attributes if n == "content" and "script-src" in v)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert b"http-equiv" in data[: data.index(b"<style>")]
    return found


def test_an_evaluation_has_its_sections_pictures_and_numbers(finished):
    data = evaluation_page(finished.evaluation, PageOptions())
    found = check_harmless(data, 7)
    sections = {"classes", "examples", "fingerprints", "map", "calibration", "unknown", "groups"}
    assert sections | {"provenance"} <= found.ids
    metrics = storage.read_json(f"{finished.evaluation}/metrics.json")
    text = data.decode()
    assert f'<b class="">{metrics["accuracy"]:.3f}</b>' in text
    assert f"95 %: {metrics['accuracy_low']:.3f} to {metrics['accuracy_high']:.3f}" in text
    assert handmade_outputs.HOSTILE[0] not in text
    assert "&lt;img src=x onerror=window.pwned=1&gt;" in text
    manifest = storage.read_json(f"{finished.evaluation}/manifest.json")
    assert manifest["key"] in text
    assert f"<dt>commit</dt><dd>{manifest['commit']}</dd>" in text
    assert f"torch {manifest['versions']['torch']}" in text
    outcomes = [value for name, value in found.attributes if name == "data-outcome"]
    assert set(outcomes) <= {"right", "wrong", "unsure", "unknown"}
    assert len(outcomes) >= 8
    assert found.tags.count("img") > 2 * len(outcomes)
    assert all(v for n, v in found.attributes if n == "alt")
    assert len(data) < pages.MOST_PAGE_BYTES


def test_design_choices_are_in_the_order_of_the_tree(finished):
    data = evaluation_page(finished.evaluation, PageOptions())
    text = data.decode().partition('id="fingerprints"')[2].partition("</section>")[0]
    scripts = text.split('<script type="application/json">')[1:]
    charts = [json.loads(part.split("</script>")[0]) for part in scripts]
    leaves = next(c["layout"]["yaxis"]["ticktext"] for c in charts if "ticktext" in str(c))
    rows = text.partition("in the order of the tree")[2].partition("<tbody>")[2].split("<tr>")[1:]
    names = [re.search(r'scope="row">(.*?)</th>', row)[1] for row in rows]
    families = [re.search(r'<td class="text">(.*?)</td>', row)[1] for row in rows]
    assert names == leaves
    assert dict(zip(names, families, strict=True))["real"] == "vae"  # its recipe is the second
    assert "seed" not in rows[0]


def test_the_verdict_of_the_audit_is_in_the_headline(finished, tmp_path):
    findings = [{"name": "format", "share": 0.9, "verdict": "fail"}]
    handmade_outputs.published(
        f"{tmp_path}/audit", "audit", {"verdict": "fail", "findings": findings}, {}
    )
    for page, output in ((evaluation_page, finished.evaluation), (crawl_page, finished.crawl)):
        text = page(output, PageOptions(audit=f"{tmp_path}/audit")).decode()
        headline = text.partition('<ul class="figures">')[2].partition("</ul>")[0]
        assert '<b class="fail">fail</b>' in headline
        assert '<th scope="row">format</th><td>0.900</td>' in text
        without = page(output, PageOptions()).decode().partition('<ul class="figures">')[2]
        assert "Audit of the files" not in without.partition("</ul>")[0]


@pytest.mark.parametrize("verdict", ["pass", "fail"])
def test_the_audit_before_the_training_is_on_the_pages(finished, tmp_path, verdict):
    model = shutil.copytree(finished.model, tmp_path / "model")
    manifest = storage.read_json(f"{model}/manifest.json")
    audit = {"verdict": verdict, "images": 60, "says": "<i>what it says", "findings": []}
    audit |= {"note": "trained on all that"} if verdict == "fail" else {}
    storage.write_json(f"{model}/manifest.json", manifest | {"audit": audit})
    options = PageOptions(model=str(model))
    pages = ((evaluation_page, finished.evaluation), (crawl_page, finished.crawl))
    for page, output in (*pages, (robustness_page, finished.robustness)):
        text = page(output, options).decode()
        assert f'<b class="{verdict}">{verdict}</b>' in text
        assert "the audit before the training: &lt;i&gt;what it says." in text
        assert ("The attributor was trained on all that." in text) == (verdict == "fail")


def test_a_crawl_has_its_sections_and_names_from_outside_are_text(finished):
    data = crawl_page(finished.crawl, PageOptions())
    found = check_harmless(data, 8)
    sections = {"sources", "scores", "domains", "months", "examples", "map", "groups", "rows"}
    assert sections | {"throughput", "quarantine", "provenance"} <= found.ids
    text = data.decode()
    for name in handmade_outputs.HOSTILE[:4]:
        assert name not in text
    assert "&lt;img src=x onerror=window.pwned=1&gt;" in text
    assert "{{ 7 * 7 }}" in text
    summary = storage.read_json(f"{finished.crawl}/summary.json")
    assert f"{summary['quarantined']:,}" in text
    assert text.count("<tr data-decision=") == 60 + len(handmade_outputs.HOSTILE)


def chart_of(data: bytes, section: str) -> dict:
    """The first chart of a section, as Plotly is given it."""
    text = data.decode().partition(f'id="{section}"')[2]
    return json.loads(text.partition('<script type="application/json">')[2].split("</script>")[0])


def test_throughput_is_drawn_where_a_crawl_has_noted_it(finished):
    data = crawl_page(finished.crawl, PageOptions())
    chart = chart_of(data, "throughput")
    rates, mean, again = chart["data"]
    assert chart["layout"]["xaxis"]["title"]["text"] == "minutes of work"
    assert (rates["y"][0], rates["y"][-1], rates["x"][-1]) == (10.0, 1.0, 120.0)
    assert mean["y"] == [7.75, 7.75]  # (150 * 360 + 50 * 36) / 7200
    assert again["x"] == [60.0]
    text = data.decode()
    assert "Rows per second over 120.0 minutes: 7.8 on average" in text
    assert "Rates depend on the machines and their number" in text


def test_a_crawl_with_dates_counts_its_months(finished):
    data = crawl_page(finished.crawl, PageOptions())
    bars = {bar["name"]: dict(zip(bar["x"], bar["y"], strict=True)) for bar in
            chart_of(data, "months")["data"]}  # fmt: skip
    # Decisions come in turn, one for each date: fifteen rows of each.
    assert sum(by["2024-03"] for by in bars.values()) == 30
    assert sum(by["2025-01"] for by in bars.values()) == 15
    text = data.decode()
    assert "column &lt;b&gt;captured; 15 rows have no date there" in text
    assert '<td class="text">2024-03-31T23:59:59Z</td>' in text


def test_a_crawl_without_dates_and_times_has_no_such_sections(finished, tmp_path):
    crawl = handmade_outputs.crawl(tmp_path, finished.model, handmade.CLASSES, 4)
    ids = check_harmless(crawl_page(crawl, PageOptions()), 6).ids
    assert not {"months", "throughput"} & ids
    assert {"rows", "quarantine"} <= ids


def test_domains_are_counted_by_decision(finished):
    """Twelve of sixty images are of the web; the table has a row for each host and folder."""
    text = crawl_page(finished.crawl, PageOptions()).decode()
    table = text.partition('id="domains"')[2].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = [row.split("</td>")[:-1] for row in table.split("</tr>")[:-1]]
    names = [row[0].split(">")[2].split("<")[0] for row in rows]
    counts = [[int(cell.split(">")[-1]) for cell in row] for row in rows]
    found = dict(zip(names, counts, strict=True))
    assert sum(total for total, *_ in counts) == 60
    assert all(total == sum(by_decision) for total, *by_decision in counts)
    assert found["images.example"][0] + found["example.org"][0] == 12


def test_robustness_has_a_page_and_a_section_of_an_evaluation(finished):
    page = robustness_page(finished.robustness, PageOptions())
    assert {"robustness", "levels", "provenance"} <= check_harmless(page, 2).ids
    assert f"{9 / (9 + 2 * 5):.3f}" in page.decode()  # at jpeg:50
    beside = evaluation_page(finished.evaluation, PageOptions(robustness=finished.robustness))
    assert "robustness" in check_harmless(beside, 9).ids


def test_charts_show_tags_of_names_as_text(finished):
    data = evaluation_page(finished.evaluation, PageOptions()).decode()
    charts = data.split('<script type="application/json">')[1:]
    names = {t.get("name") for c in charts for t in json.loads(c.split("</script>")[0])["data"]}
    assert "&lt;img src=x onerror=window.pwned=1&gt;" in names


def test_the_job_writes_the_page_and_logs_it(finished, tmp_path):
    import mlflow

    place, summary = tmp_path / "page.html", tmp_path / "summary.json"
    flags = [finished.crawl, "--output", str(place), "--json", str(summary), "--samples", "1"]
    assert report.main(flags) == 0
    found = json.loads(summary.read_text())
    assert found == {"output": str(place), "of": "attributions", "bytes": place.stat().st_size}
    run = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    logged = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=report.NAME)
    assert Path(logged).read_bytes() == place.read_bytes()


def test_an_output_in_a_bucket_has_the_same_page(finished, s3):
    place = f"{s3}/pages/evaluation"
    for uri, _ in storage.files_under(finished.evaluation):
        storage.copy(uri, place + uri.removeprefix(finished.evaluation))
    here, there = (evaluation_page(u, PageOptions()) for u in (finished.evaluation, place))
    assert here.replace(finished.evaluation.encode(), place.encode()) == there


def test_another_output_is_refused_in_one_line(finished, tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "give a finished output of evaluate or attribute" in capsys.readouterr().err
    with pytest.raises(ManifptError, match="no finished audit there"):
        crawl_page(finished.crawl, PageOptions(audit=finished.evaluation))


def audited(uri, model=None):
    """Return the text of a page with an audit."""
    page = Page("title", "", [Figure("a", "1")], [], audit=audit_of(uri, model))
    values = {"robustness": {"images": 1, "levels": []}, "place": "", "number": pages.number}
    return rendered("robustness.html", page, values).decode()


def test_a_page_shows_the_audit_before_the_training():
    audit = {"verdict": "pass", "images": 9, "says": "no property tells the classes"}
    audit["findings"] = []
    text = audited(None, FoundAttributor("model", {"audit": audit}))
    assert "the audit before the training: no property tells the classes." in text
    assert "The attributor was" not in text
    audit |= {"verdict": "fail", "note": "trained all the same"}
    text = audited(None, FoundAttributor("model", {"audit": audit}))
    assert "The attributor was trained all the same." in text
    assert "No audit of the images" in audited(None, FoundAttributor("model", {}))


def test_a_page_shows_an_audit_that_is_named(tmp_path):
    place = str(tmp_path / "audit")
    findings = [
        {"name": "width", "share": 0.5, "verdict": "pass"},
        {"name": "format", "share": 1.0, "verdict": "fail"},
    ]
    handmade_outputs.published(place, "audit", {"verdict": "fail", "findings": findings}, {})
    text = audited(place)
    assert f"<code>{place}</code>" in text
    assert text.index(">format</th>") < text.index(">width</th>")


def test_a_page_beyond_its_limit_is_refused(monkeypatch):
    monkeypatch.setattr(pages, "MOST_PAGE_BYTES", 10)
    page = Page("title", "", [Figure("a", "1")], [])
    values = {"robustness": {"images": 1, "levels": []}, "place": "", "number": pages.number}
    with pytest.raises(ManifptError, match="give a lower --samples"):
        rendered("robustness.html", page, values)
