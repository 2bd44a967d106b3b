"""A page from a template: one HTML file that needs no network and runs only its own scripts.

The template engine escapes all texts from a crawl. In addition, the page's content security policy
names the hashes of its own scripts: others do not run, and nothing is loaded.
"""

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from manifpt.errors import ManifptError
from manifpt.report.charts import Chart
from manifpt.report.page_pictures import colour_bar, png
from manifpt.report.page_provenance import Part, ShownAudit

MOST_PAGE_BYTES = 10 * 10**6


@dataclass(frozen=True)
class Figure:
    """A number of the headline: its name, value, and interval or comment."""

    name: str
    value: str
    beside: str = ""
    tone: str = ""


@dataclass
class Page:
    """The content of every page: a title, the headline, notes, charts, and provenance."""

    title: str
    subtitle: str
    figures: Sequence[Figure]
    parts: Sequence[Part]
    notes: list[str] = field(default_factory=list)
    charts: dict[str, Chart] = field(default_factory=dict)
    audit: ShownAudit | None = None
    audited: bool = True  # whether its images could be


def interval_text(values: Mapping[str, Any], name: str) -> str:
    """Return the interval of a metric as text; nothing if it has none."""
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    return "" if low is None or high is None else f"95 %: {low:.3f} to {high:.3f}"


def integrity(script: str) -> str:
    """Return the source expression by which a content security policy names a script or style."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


@cache
def _plotly() -> tuple[str, str]:
    """Return Plotly's script, compressed and as text, and its hash."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    packed = base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()
    return packed, integrity(script)


def own_file(name: str) -> str:
    """Return the text of a file of the templates."""
    return resources.files("manifpt.report").joinpath("templates", name).read_text("utf-8")


def template_environment() -> Environment:
    """Return the template engine: all values are escaped."""
    made = Environment(
        loader=PackageLoader("manifpt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    made.filters["percent"] = lambda value: "-" if value is None else f"{value:.1%}"
    made.filters["short"] = shortened
    return made


def number(value: object, digits: int = 3) -> str:
    """Return a number for a cell: 12,345 or 0.973; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def shortened(text: object, most: int = 60) -> str:
    """Return a text whose middle is left out if it is long."""
    whole = str(text)
    half = (most - 1) // 2
    return whole if len(whole) <= most else f"{whole[:half]}…{whole[-half:]}"


def rendered(template: str, page: Page, values: Mapping[str, Any]) -> bytes:
    """Return a page as HTML; raise if it is larger than a page may be."""
    packed, plotly_hash = _plotly() if page.charts else ("", "")
    script = own_file("page.js")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        f"form-action 'none'; script-src {integrity(script)} {plotly_hash}"
    )
    bar = "data:image/png;base64," + base64.b64encode(png(colour_bar())).decode()
    text = (
        template_environment()
        .get_template(template)
        .render(
            page=page,
            policy=policy.strip(),
            style=Markup(own_file("page.css")),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            plotly=packed,
            colours=bar,
            **values,
        )
    )
    data = text.encode("utf-8", "replace")
    if len(data) > MOST_PAGE_BYTES:
        raise ManifptError(
            f"the page would have {len(data):,} bytes, limit {MOST_PAGE_BYTES:,}; give a lower "
            "--samples"
        )
    return data
