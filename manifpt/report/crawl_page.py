"""A finished crawl as a page: counts, scores, groups, quarantine, and sampled rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifpt import outputs, storage
from manifpt.attribution.crawl.attribute import KIND, SUMMARY
from manifpt.attribution.crawl.crawl_format import (
    AttributionRow,
    AttributionsManifest,
    AttributionSummary,
    GroupRow,
    Leak,
    QuarantineRow,
)
from manifpt.attribution.crawl.grouping import EVIDENCE, GROUPS
from manifpt.attribution.unknown.decision import DECISIONS
from manifpt.errors import ManifptError, public
from manifpt.images import DecodeRule
from manifpt.images.decode import ERRORS
from manifpt.report import charts
from manifpt.report.crawl_counts import MOST_LISTED, SCORES, Totals, count_rows, domain_of, wilson
from manifpt.report.crawl_times import Months
from manifpt.report.evaluation_page import MOST_POINTS, PageOptions
from manifpt.report.examples import ShownExample, View, pictures_of_reals
from manifpt.report.explanation import Explainer
from manifpt.report.image_map import map_of
from manifpt.report.page import Figure, Page, number, rendered
from manifpt.report.page_pictures import Pictures
from manifpt.report.page_provenance import (
    FoundAttributor,
    attributor_of,
    audit_of,
    model_parts,
    output_part,
)
from manifpt.report.rows import Strata, evenly_spread, files_of_folder, tables_of_files
from manifpt.report.thumbnails import raws_of, thumbnails
from manifpt.report.tile_overlay import legend_of
from manifpt.report.triplets import triplets
from manifpt.storage import tensors

TEMPLATE = "crawl.html"
LEAKS: dict[Leak, str] = {
    "in_training": "have the pixels of a training image",
    "near_training": "look like a training image",
    "near_manifold": "look like a real of a manifold",
}


class SampledRow(AttributionRow):
    """A row of the table: the reason why it is shown, its domain, and its text in a date column."""

    why: str
    domain: str
    date: object


class PicturedRow(SampledRow):
    """A row with the pictures of its image and of its nearest real."""

    image: str | None
    real: str | None


class CrawlExample(ShownExample):
    """A row with its artifacts; its ``source`` is the predicted one, its outcome the decision."""

    probability: float


class _MapRow(TypedDict):
    """An image of the map, from its evidence for a group."""

    id: str
    group: str
    decision: str
    prediction: str
    probability: float
    coordinates: list[float]
    hover: str


@dataclass(frozen=True)
class CodeRows:
    """A code of the quarantine: the number of its rows, its meaning, and some rows."""

    code: str
    count: int
    meaning: str
    rows: list[QuarantineRow]


class _Crawl:
    """The output of a crawl, read once."""

    def __init__(self, uri: str, options: PageOptions) -> None:
        self.uri, self.options = storage.absolute(uri), options
        self.manifest: AttributionsManifest = outputs.require(uri, KIND, "RUN")
        self.summary: AttributionSummary = storage.read_json(storage.join(self.uri, SUMMARY))
        self.notes: list[str] = []

    @cached_property
    def model(self) -> FoundAttributor | None:
        """The attributor; None if it is gone."""
        return attributor_of(self.uri, self.summary, self.options.model)

    @cached_property
    def explainer(self) -> Explainer | None:
        """The attributor, to draw artifacts by; None if it or a manifold is gone."""
        if self.model is None:
            self.notes.append("Without artifacts: the attributor is gone; name it by --model.")
            return None
        manifolds = self.options.manifolds or self.summary.get("manifolds", ())
        try:
            return Explainer.open(self.model.uri, manifolds)
        except (ManifptError, OSError) as error:
            self.notes.append(f"Without artifacts: {error}")
            return None

    @cached_property
    def months(self) -> Months:
        """Counts by month, once the rows are read."""
        return Months()

    @cached_property
    def read(self) -> tuple[Totals, list[SampledRow]]:
        """Totals of the rows, and a sample of them with the surest and the strangest."""
        totals = Totals()
        predictions = self.summary["predictions"]
        strata = Strata(max(1, self.options.rows // max(sum(map(len, predictions.values())), 1)))
        shown = {row["id"]: "strangest" for row in self.summary["strangest"]}
        shown |= {row["id"]: "surest" for row in self.summary["surest"]}
        extremes: dict[str, SampledRow] = {}
        files = evenly_spread(files_of_folder(self.manifest, "attributions"))
        for table in tables_of_files(self.uri, files):
            totals.add(table)
            self.months.add(table)
            names = table.select(["prediction", "decision"]).to_pylist()
            strata.add(table, [f"{row['prediction']}\0{row['decision']}" for row in names])
            kept = table.filter(pc.is_in(table["id"], pa.array(list(shown), pa.string())))
            extremes |= {row["id"]: row for row in kept.to_pylist()}
        rows: dict[str, SampledRow] = {row["id"]: row for row in strata.all} | extremes
        for row in rows.values():
            row["why"] = shown.get(row["id"], "sample")
            row["domain"] = domain_of(row["uri"] or "")
            row["date"] = row.get(self.months.column) if self.months.column else None
        return totals, [rows[id] for id in sorted(rows)]

    def folder(self, name: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the tables of a folder of the output."""
        yield from tables_of_files(
            self.uri, evenly_spread(files_of_folder(self.manifest, name)), columns
        )


def crawl_figures(summary: AttributionSummary) -> list[Figure]:
    """Return the counts and shares of decisions."""
    total = max(summary["ok"], 1)
    found = [
        Figure("Images attributed", f"{summary['ok']:,}", f"of {summary['rows_in']:,} rows"),
        Figure("Quarantined", f"{summary['quarantined']:,}", "could not be read"),
    ]
    for name in DECISIONS:
        count = summary["decisions"].get(name, 0)
        low, high = wilson(count, total)
        beside = f"{count:,} images, {low:.1%} to {high:.1%}"
        found.append(Figure(name.capitalize(), f"{count / total:.1%}", beside, name))
    if "images_per_second" in summary:
        rate, seconds = summary["images_per_second"], summary["seconds"]
        found.append(Figure("Speed", f"{rate:,.0f}/s", f"{seconds:,.0f} s with its start"))
    return found


def largest_groups(crawl: _Crawl) -> tuple[list[GroupRow], dict[str, int]]:
    """Return the groups with most images, and the number of groups by decision."""
    rows: list[GroupRow] = []
    decisions: Counter[str] = Counter()
    for table in crawl.folder(GROUPS):
        decisions.update(table["decision"].to_pylist())
        rows += table.to_pylist()
        rows = sorted(rows, key=lambda row: (-row["images"], row["group"]))[:MOST_LISTED]
    return rows, dict(decisions)


def quarantine_rows(crawl: _Crawl, most: int = 5) -> list[CodeRows]:
    """Return the codes of the quarantine with their counts, meanings, and some rows."""
    strata = Strata(most)
    for table in crawl.folder("quarantine", ["id", "uri", "error", "message"]):
        strata.add(table, table["error"].to_pylist())
    counts, rows = crawl.summary["by_error"], strata.rows
    return [
        CodeRows(code, count, ERRORS.get(code, ""), rows.get(code, []))
        for code, count in sorted(counts.items(), key=lambda item: -item[1])
    ]


def map_of_crawl(crawl: _Crawl) -> charts.Chart | None:
    """Return the map of images whose evidence was kept, which --group-by does."""
    if crawl.model is None:
        return None
    classes = crawl.model.manifest["classes"]
    strata = Strata(MOST_POINTS // len(classes))
    for table in crawl.folder(EVIDENCE):
        if "coordinates" not in table.column_names:
            return None
        probabilities = tensors.from_column(table["probabilities"]).reshape(table.num_rows, -1)
        answers = [classes[n] for n in probabilities.argmax(1)]
        columns = {
            "id": table["sha256"],
            "group": table["group"],
            "decision": table["decision"],
            "prediction": answers,
            "probability": probabilities.max(1).astype(np.float64),
            "coordinates": list(tensors.from_column(table["coordinates"])),
        }
        strata.add(pa.table(columns), answers)
    rows: list[_MapRow] = strata.all
    if len(rows) < 3:
        return None
    for row in rows:
        row["hover"] = charts.hover({**row, "id": row["group"]})
    return charts.map_chart(map_of([row["coordinates"] for row in rows]), rows, "prediction")


def examples_of(crawl: _Crawl, pictures: Pictures) -> tuple[list[View], list[CrawlExample]]:
    """Return the views of spaces, and some rows of each answer with their artifacts."""
    explainer = crawl.explainer
    if explainer is None:
        return [], []
    strata = Strata(crawl.options.samples)
    rows = crawl.read[1]
    names = [f"{row['prediction']}\0{row['decision']}" for row in rows]
    if not rows:
        return [], []
    strata.add(pa.table({"id": [row["id"] for row in rows]}), names)
    wanted = {row["id"] for row in strata.all}
    chosen = {row["uri"]: row for row in rows if row["id"] in wanted}
    table, _ = explainer.table(raws_of(set(chosen)))
    if table is None:
        crawl.notes.append("Without artifacts: none of the images could be read again.")
        return [], []
    uris = table["uri"].to_pylist()
    views, shown = triplets(explainer, table, [chosen[u]["prediction"] for u in uris], pictures)
    found: list[CrawlExample] = []
    for uri, one in zip(uris, shown, strict=True):
        row = chosen[uri]
        entry: CrawlExample = {
            **one,
            "id": row["id"],
            "outcome": row["decision"],
            "source": row["prediction"],
            "probability": row["probability"],
        }
        found.append(entry)
    found.sort(key=lambda one: (one["source"], one["outcome"], one["id"]))
    return views, found


def with_pictures(
    crawl: _Crawl, rows: Sequence[SampledRow], pictures: Pictures
) -> list[PicturedRow]:
    """Return rows with the pictures of their images and of their nearest reals."""
    if crawl.model is None:
        rule, manifolds = DecodeRule(64), []
    else:
        branches = crawl.model.manifest["branches"]
        rule = DecodeRule.from_card(branches[0]["decode"])
        places = list(crawl.options.manifolds or crawl.summary.get("manifolds", ()))
        hashes = [b["manifold_sha256"] for b in branches if b["manifold"]]
        manifolds = list(zip(places, hashes, strict=False))[:1]
    images = thumbnails([row["uri"] for row in rows if row["uri"]], rule)
    reals: dict[str, np.ndarray] = {}
    for place, content in manifolds:
        reals |= pictures_of_reals(place, [row["neighbor_id"] for row in rows], content)
    seen: dict[str, str | None] = {}
    made: list[PicturedRow] = []
    for row in rows:
        image, neighbour = pictures.uri(images.get(row["uri"])), row["neighbor_id"] or ""
        if neighbour not in seen:
            seen[neighbour] = pictures.uri(reals.get(neighbour))
        made.append({**row, "image": image, "real": seen[neighbour]})
    return made


def charts_of(crawl: _Crawl) -> dict[str, charts.Chart]:
    """Return the charts for which the crawl has numbers, by their names in the template."""
    totals, predictions = crawl.read[0], crawl.summary["predictions"]
    drawn = {"sources": charts.stacked_bars(predictions, "nearest source")}
    if len(totals.domains) > 1:
        shown = [row.name for row in count_rows(totals.domains)[:25]]
        by_domain = {name: totals.domains[name] for name in shown}
        drawn["domains"] = charts.stacked_bars(by_domain, "domain")
    drawn |= dict(totals.histograms())
    if crawl.months.counts:
        drawn["months"] = charts.month_bars(crawl.months.ordered)
    points = map_of_crawl(crawl)
    if points is not None:
        drawn["map"] = points
    rates = crawl.manifest.get("rows_over_time")  # outputs of earlier versions have none
    if rates:
        drawn["throughput"] = charts.throughput_chart(rates)
    return drawn


def crawl_page(uri: str, options: PageOptions) -> bytes:
    """Return the page of a finished crawl as HTML."""
    crawl, pictures = _Crawl(uri, options), Pictures()
    summary = crawl.summary
    totals, sampled = crawl.read
    views, examples = examples_of(crawl, pictures)
    rows = with_pictures(crawl, sampled, pictures)
    sources = count_rows(summary["predictions"])
    domains = count_rows(totals.domains)
    months = crawl.months
    drawn = charts_of(crawl)
    groups, group_decisions = largest_groups(crawl)
    if totals.rows < summary["ok"]:
        crawl.notes.append(
            f"Domains, months, scores and sampled rows are of {totals.rows:,} rows, in files "
            "spread over the whole output; counts by source and decision are of all."
        )
    if pictures.refused:
        crawl.notes.append(
            f"{pictures.refused} pictures are left out: the page would be too large."
        )
    parts = [output_part("Attributions", crawl.uri, crawl.manifest)]
    parts += model_parts(*crawl.model) if crawl.model else []
    given = summary.get("inputs", {}).get("given", ())[:3]
    names = [storage.base_name(public(text)) for text in given]
    page = Page(
        f"Attribution of {', '.join(names) or 'images'}",
        f"by {storage.base_name(str(summary['model']))}, {crawl.manifest.get('written', '')}",
        crawl_figures(summary),
        parts,
        notes=crawl.notes,
        charts=drawn,
        audit=audit_of(options.audit, crawl.model),
    )
    values = {
        "summary": summary,
        "sources": sources,
        "domains": domains,
        "domain_count": len(totals.domains),
        "months": months,
        "month_rows": sorted(count_rows(months.counts), key=lambda row: row.name),
        "decisions": DECISIONS,
        "groups": groups,
        "group_decisions": group_decisions,
        "quarantine": quarantine_rows(crawl),
        "rows": rows,
        "views": views,
        "examples": examples,
        "legend": legend_of(len(crawl.model.manifest["classes"]) if crawl.model else 0),
        "leaks": {name: (summary["leaks"][name], text) for name, text in LEAKS.items()},
        "scores": list(SCORES),
        "place": public(crawl.uri),
        "number": number,
    }
    return rendered(TEMPLATE, page, values)
