"""A finished measurement of robustness as a page: accuracy against degradations."""

from manifpt import outputs, storage
from manifpt.errors import public
from manifpt.evaluation.evaluation_format import RobustnessCurves, RobustnessManifest
from manifpt.evaluation.robustness import RESULT
from manifpt.report.evaluation_page import PageOptions, robustness_of
from manifpt.report.page import Figure, Page, interval_text, number, rendered
from manifpt.report.page_provenance import (
    attributor_of,
    audit_of,
    model_parts,
    output_part,
)

TEMPLATE = "robustness.html"


def robustness_page(uri: str, options: PageOptions) -> bytes:
    """Return the page of a finished output of ``evaluate --robustness`` as HTML."""
    manifest: RobustnessManifest = outputs.require(uri, "robustness", "RUN")
    place = storage.absolute(uri)
    result: RobustnessCurves = storage.read_json(storage.join(place, RESULT))
    clean, *levels = result["levels"]
    worst = min(levels, key=lambda level: level["accuracy"], default=clean)
    model = attributor_of(place, manifest, options.model)
    page = Page(
        f"Robustness of {storage.base_name(str(manifest['model']))}",
        f"{result['images']:,} unseen images of {len(result['classes'])} sources",
        [
            Figure("As they are", f"{clean['accuracy']:.3f}", interval_text(clean, "accuracy")),
            Figure(
                f"At {worst['degradation']}",
                f"{worst['accuracy']:.3f}",
                interval_text(worst, "accuracy"),
            ),
            Figure("Chance", f"{result['chance']:.3f}", "share of the largest class"),
        ],
        [
            output_part("Robustness", place, manifest),
            *(model_parts(*model) if model else []),
        ],
        charts=robustness_of(result),
        audit=audit_of(options.audit, model),
    )
    values = {"robustness": result, "place": public(place), "number": number}
    return rendered(TEMPLATE, page, values)
