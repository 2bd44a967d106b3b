"""An explanation as text for a terminal, and as a page."""

from collections.abc import Sequence

import pyarrow as pa

from manifpt import __version__, storage
from manifpt.errors import public
from manifpt.images.degrade import Degradation
from manifpt.images.degraded_copies import view
from manifpt.images.read import as_space_sees, pixels_of
from manifpt.outputs.provenance import git_commit, versions
from manifpt.report.examples import ShownExample, pictures_of_reals
from manifpt.report.explanation import Explainer
from manifpt.report.explanation_format import DegradedVerdict, Explanation, NearestReal
from manifpt.report.page import Figure, Page, number, rendered
from manifpt.report.page_pictures import Pictures
from manifpt.report.page_provenance import Part, model_parts, versions_text
from manifpt.report.tile_overlay import LARGE_SIDE, legend_of
from manifpt.report.triplets import triplets

TEMPLATE = "explanation.html"


class PicturedVerdict(DegradedVerdict):
    """The verdict on a degraded copy, with its picture."""

    image: str | None


class PicturedReal(NearestReal):
    """A nearest real with its picture."""

    image: str | None


def table_of(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as text in columns, the first to the left and the others to the right."""
    texts = [[number(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for first, *others in texts:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  " + "  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def strongest_tile(found: Explanation) -> str:
    """Return the words that name the tile with most support; none for an image of one tile."""
    tiles = found["tile_evidence"]
    return f", of the tile at {tiles[0]['x']}, {tiles[0]['y']}" if len(tiles) > 1 else ""


def explanation_text(found: Explanation) -> str:
    """Return an explanation for a terminal."""
    verdict = f"{found['prediction']} with probability {found['probability']:.3f}"
    parts = [f"{found['image']}\ndecision: {found['decision']}; most like {verdict}"]
    votes: list[Sequence[object]] = [("head", "weight", "says", "probability")]
    for vote in found["votes"]:
        first = vote["answers"][0]
        votes.append((vote["head"], vote["weight"], first["source"], first["probability"]))
    parts.append("votes of the heads, each by itself\n" + table_of(votes))
    if found["unknown"]:
        unknown = found["unknown"]
        rows: list[Sequence[object]] = [("score", "value", "known images as strange")]
        rows += [(one["score"], one["value"], one["p"]) for one in unknown["scores"]]
        rows.append(("together", None, unknown["p"]))
        limit = f"unknown at {unknown['limit']:g} or below"
        parts.append(f"how strange it is; {limit}\n{table_of(rows)}")
    for name, reals in found["nearest_reals"].items():
        rows = [("nearest real", "distance", "percentile")]
        rows += [(one["id"], one["distance"], one["percentile"]) for one in reals]
        parts.append(f"in the space {name}{strongest_tile(found)}\n{table_of(rows)}")
    if len(found["tile_evidence"]) > 1:
        rows = [("tile at", f"probability of {found['prediction']}", "support")]
        for one in found["tile_evidence"]:
            rows.append((f"{one['x']}, {one['y']}", one["probability"], one["support"]))
        parts.append("what its tiles say, the strongest first\n" + table_of(rows))
    rows = [("degradation", "prediction", "probability", "decision", "")]
    for level in found["degraded"]:
        mark = "" if level["same"] else "changed"
        answer = (level["prediction"], level["probability"], level["decision"])
        rows.append((level["degradation"], *answer, mark))
    changed = ", ".join(found["changed_by"]) or "none of these"
    parts.append(f"the verdict is changed by: {changed}\n{table_of(rows)}")
    leaks = [name.replace("_", " ") for name, value in found["leaks"].items() if value]
    if leaks:
        parts.append(f"seen before: {', '.join(leaks)}")
    return "\n\n".join(parts)


def _degraded_pictures(
    explainer: Explainer, table: pa.Table, found: Explanation, pictures: Pictures
) -> list[PicturedVerdict]:
    rule = explainer.projectors[0].rule
    rows: list[PicturedVerdict] = []
    for one in found["degraded"]:
        copy = view(table, Degradation.parse(one["degradation"]), rule.filter)
        rows.append({**one, "image": pictures.uri(pixels_of(as_space_sees(copy, rule))[0])})
    return rows


def _reals(
    explainer: Explainer, found: Explanation, pictures: Pictures
) -> dict[str, list[PicturedReal]]:
    made: dict[str, list[PicturedReal]] = {}
    names = [branch["name"] for branch in explainer.attributor.branches]
    for name, projector in zip(names, explainer.projectors, strict=True):
        if projector.manifold is None:
            continue
        rows, manifold = found["nearest_reals"][name], projector.manifold
        seen = pictures_of_reals(manifold.uri, [row["id"] for row in rows], manifold.sha256)
        made[name] = [{**row, "image": pictures.uri(seen.get(row["id"]))} for row in rows]
    return made


def explanation_page(explainer: Explainer, table: pa.Table, found: Explanation) -> bytes:
    """Return an explanation as HTML."""
    pictures = Pictures()
    views, rows = triplets(explainer, table, [found["prediction"]], pictures, LARGE_SIDE)
    unknown = found["unknown"]
    figures = [
        Figure("Decision", found["decision"], "", found["decision"]),
        Figure("Nearest source", found["prediction"], f"probability {found['probability']:.3f}"),
    ]
    if unknown:
        beside = f"unknown at {unknown['limit']:g} or below"
        figures.append(Figure("Known images as strange", f"{unknown['p']:.3f}", beside))
    kinds = {one["degradation"].partition(":")[0] for one in found["degraded"][1:]}
    figures.append(
        Figure(
            "Changed by",
            f"{len(found['changed_by'])} of {len(kinds)}",
            "kinds of degradation",
        )
    )
    made = [
        ("manifpt", __version__),
        ("commit", git_commit()),
        ("versions", versions_text(versions())),
    ]
    page = Page(
        f"Why {storage.base_name(public(str(found['image'])))}",
        f"explained by the attributor {storage.base_name(str(found['model']))}",
        figures,
        [
            *model_parts(explainer.attributor.uri, explainer.attributor.manifest),
            Part("This explanation", made),
        ],
        audited=False,
    )
    example: ShownExample = {
        **rows[0],
        "tiles": None,
        "outcome": found["decision"],
        "id": found["image"],
        "source": "",
    }
    values = {
        "found": found,
        "views": views,
        "tiles": rows[0]["tiles"],
        "example": example,
        "legend": legend_of(len(explainer.attributor.classes)),
        "reals": _reals(explainer, found, pictures),
        "of_tile": strongest_tile(found),
        "degraded": _degraded_pictures(explainer, table, found, pictures),
        "place": public(str(found["image"])),
        "number": number,
    }
    return rendered(TEMPLATE, page, values)
