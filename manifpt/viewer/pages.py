"""The viewer's pages: an output of ``attribute`` and the query of an address -> HTML.

The template engine escapes every value. ``POLICY`` names the hashes of the pages' own script and
style: others do not run, and nothing is loaded from elsewhere.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pyarrow.compute as pc
from jinja2 import Environment
from markupsafe import Markup

from manifpt import storage
from manifpt.attribution.crawl.crawl_format import AttributionRow
from manifpt.attribution.crawl.duplicates import DUPLICATES
from manifpt.attribution.unknown.decision import DECISIONS
from manifpt.errors import public
from manifpt.images.contents import is_web
from manifpt.images.decode import ERRORS, DecodeError
from manifpt.report.crawl_counts import count_rows
from manifpt.report.crawl_page import LEAKS, crawl_figures
from manifpt.report.page import integrity, number, own_file, template_environment
from manifpt.viewer.filters import ORDERS, Filters
from manifpt.viewer.output import MOST_ALIKE, CrawlOutput
from manifpt.viewer.pictures import PictureCache
from manifpt.viewer.scan import AddressError, Position, Query

PAGE_ROWS = 50
# Columns of the table of rows.
SHOWN = ("id", "uri", "decision", "prediction", "probability", "unknown_p", "percentile")
# Facts of a row, in this order; other columns of the output come after them.
FACTS = (
    *("id", "uri", "source", "decision", "prediction", "probability", "unknown_score"),
    *("unknown_p", "neighbor_id", "distance", "percentile", "agreement", "tiles"),
)
# Kinds of copies, by the column that names the first image of each.
COPIES = {"exact": "duplicate_of", "near": "near_duplicate_of"}
HIDDEN = {"at", "top_k", "deciding_tiles", "status", *LEAKS, "in_manifold"}


class ShownImage(NamedTuple):
    """The sizes and the format of an image, or as ``wrong`` the reason why it has no picture."""

    wrong: str
    width: int = 0
    height: int = 0
    format: str = ""


@cache
def _engine() -> Environment:
    made = template_environment()
    made.filters["address"] = urlencode
    made.globals["style"] = Markup(own_file("page.css"))  # noqa: S704 - our own file
    made.globals["script"] = Markup(own_file("page.js"))  # noqa: S704 - our own file
    made.globals["number"] = number
    return made


@cache
def policy() -> str:
    """Return the content security policy of all pages."""
    return (
        "default-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'; "
        f"img-src 'self' data:; style-src {integrity(own_file('page.css'))}; "
        f"script-src {integrity(own_file('page.js'))}"
    )


def _page(template: str, title: str, crawl: CrawlOutput, values: Mapping[str, Any]) -> bytes:
    place = public(crawl.uri)
    shared = {"title": title, "place": place, "has_groups": bool(crawl.groups.paths)}
    shared |= {"has_copies": bool(crawl.duplicates.paths)}
    text = _engine().get_template(template).render(**shared, **values)
    return text.encode("utf-8", "replace")


def message_page(crawl: CrawlOutput, title: str, message: str) -> bytes:
    """Return a page with an error message."""
    return _page("viewer_message.html", title, crawl, {"message": message})


def overview(crawl: CrawlOutput) -> bytes:
    """Return the page of counts: by decision, predicted source, and code of the quarantine."""
    summary = crawl.summary
    codes = sorted(summary["by_error"].items(), key=lambda item: -item[1])
    values = {
        "figures": crawl_figures(summary),
        "decisions": DECISIONS,
        "sources": count_rows(summary["predictions"]),
        "quarantine": [(code, count, ERRORS.get(code, "")) for code, count in codes],
        "leaks": [(summary["leaks"][name], text) for name, text in LEAKS.items()],
        "duplicates": summary.get("duplicates"),
    }
    return _page("viewer_overview.html", _name(crawl), crawl, values)


def _name(crawl: CrawlOutput) -> str:
    given = crawl.summary.get("inputs", {}).get("given", ())[:3]
    return f"Attribution of {', '.join(storage.base_name(public(g)) for g in given) or 'images'}"


def known_count(crawl: CrawlOutput, filters: Filters) -> int | None:
    """Return the number of matches if the summary has it; None if rows must be read."""
    chosen = Filters(filters.decision, filters.prediction, order=filters.order)
    if chosen != filters:
        return None
    return sum(
        int(count)
        for source, decisions in crawl.summary["predictions"].items()
        for decision, count in decisions.items()
        if filters.prediction in ("", source) and filters.decision in ("", decision)
    )


def rows(crawl: CrawlOutput, given: Mapping[str, str], pictures: PictureCache) -> bytes:
    """Return a page of the table of rows; ``given`` are filters, ``after`` and ``count``."""
    filters = Filters.parse(given)
    after = Position.parse(given["after"]) if given.get("after") else None
    query = crawl.query(filters)
    found = crawl.attributions.page(query, after, PAGE_ROWS)
    table: list[AttributionRow] = crawl.attributions.rows(
        found.positions, [*SHOWN, str(crawl.group_by)]
    )
    pictures.expect(row["uri"] for row in table if row["uri"])
    count = known_count(crawl, filters)
    count = found.total if count is None else count
    if count is None and given.get("count"):
        count = crawl.attributions.matches(query)
    values = {
        "filters": filters,
        "orders": {name: order[0] for name, order in ORDERS.items()},
        "decisions": DECISIONS,
        "sources": sorted(crawl.summary["predictions"]),
        "rows": [
            {**row, "group": crawl.group_of(row), "web": is_web(row["uri"] or "")} for row in table
        ],
        "grouped": crawl.group_by is not None,
        "copies": bool(crawl.duplicates.paths),
        "count": count,
        "next": filters.address(after=found.after) if found.after else None,
        "later": after is not None,
        "counted": filters.address(count=1, after=given.get("after", "")),
        "cut": MOST_ALIKE if filters.cluster and crawl.cluster(filters.cluster).cut else None,
    }
    return _page("viewer_rows.html", "Rows", crawl, values)


def row(crawl: CrawlOutput, given: Mapping[str, str], pictures: PictureCache) -> bytes:
    """Return the page of a row, which ``at`` or ``id`` names."""
    found: AttributionRow
    if given.get("id"):
        found = crawl.find(given["id"])
    else:
        found = crawl.attributions.rows([Position.parse(given.get("at", ""))])[0]
    cells: Mapping[str, object] = found
    group = crawl.group_of(found)
    copy = crawl.copy_of(found["id"]) or dict.fromkeys(DUPLICATES)
    real = crawl.real(found["neighbor_id"])
    inputs = crawl.summary.get("inputs", {}).get("given", ())
    rest = [name for name in cells if name not in FACTS and name not in HIDDEN]
    values = {
        "row": found,
        "facts": [(n.replace("_", " "), cells[n]) for n in (*FACTS, *rest) if n in cells],
        "image": shown(pictures, found["uri"], inputs),
        "real": shown(pictures, real.uri, real.inputs) if real else None,
        "leaks": [text for name, text in LEAKS.items() if found.get(name)],
        "copy": copy,
        "copies": bool(crawl.duplicates.paths),
        "group": group,
        "verdict": crawl.group(group) if group is not None else None,
        "command": crawl.explain_command(found) if found["uri"] else None,
    }
    return _page("viewer_row.html", "Image", crawl, values)


def shown(pictures: PictureCache, uri: str | None, inputs: Sequence[str]) -> ShownImage:
    """Return the sizes of an image, or the reason why it has no picture."""
    if not uri:
        return ShownImage("the row has no URI")
    try:
        found = pictures.picture(uri, inputs)
    except DecodeError as error:
        return ShownImage(f"{error.code}: {public(str(error))}")
    return ShownImage("", found.width, found.height, found.format)


def groups(crawl: CrawlOutput, given: Mapping[str, str]) -> bytes:
    """Return a page of the groups, those with most images first."""
    after = Position.parse(given["after"]) if given.get("after") else None
    found = crawl.groups.page(Query(by="images", descending=True), after, PAGE_ROWS)
    values = {
        "rows": crawl.groups.rows(found.positions),
        "count": crawl.groups.count,
        "linked": crawl.group_by is not None,
        "next": urlencode({"after": found.after}) if found.after else None,
        "later": after is not None,
    }
    return _page("viewer_groups.html", "Groups", crawl, values)


def copies(crawl: CrawlOutput, given: Mapping[str, str]) -> bytes:
    """Return a page of images that are copies of others, of one ``kind`` if it is given."""
    after = Position.parse(given["after"]) if given.get("after") else None
    kind = given.get("kind", "")
    if kind not in ("", *COPIES):
        raise AddressError(f"kind={kind[:40]}: unknown; give one of {', '.join(COPIES)}")
    column = COPIES.get(kind)
    query = Query(pc.field(column).is_valid(), (column,)) if column else Query()
    found = crawl.duplicates.page(query, after, PAGE_ROWS)
    values: dict[str, object] = {
        "kind": kind,
        "counts": crawl.summary.get("duplicates") or {},
        "rows": crawl.duplicates.rows(found.positions),
        "next": urlencode({"kind": kind, "after": found.after}) if found.after else None,
        "later": after is not None,
    }
    return _page("viewer_copies.html", "Copies", crawl, values)


def quarantine(crawl: CrawlOutput, given: Mapping[str, str]) -> bytes:
    """Return a page of the quarantine, of one ``code`` if it is given."""
    after = Position.parse(given["after"]) if given.get("after") else None
    code = given.get("code", "")
    query = Query(pc.field("error") == code, ("error",)) if code else Query()
    found = crawl.quarantine.page(query, after, PAGE_ROWS)
    values = {
        "code": code,
        "codes": sorted(crawl.summary["by_error"].items()),
        "meaning": ERRORS.get(code, ""),
        "rows": crawl.quarantine.rows(found.positions, ["id", "uri", "error", "message"]),
        "next": urlencode({"code": code, "after": found.after}) if found.after else None,
        "later": after is not None,
    }
    return _page("viewer_quarantine.html", "Quarantine", crawl, values)
