"""Table 2 of the paper: accuracy and separability of all methods on the same test images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from manifpt.evaluation.evaluation_format import EvaluationSummary
from manifpt.jobs.reproduction.benchmark_study import Study
from manifpt.jobs.reproduction.file_properties import TITLE, file_properties, told
from manifpt.jobs.reproduction.methods import LATER, PAIRS, PUBLISHED, ComparedMethod
from manifpt.jobs.reproduction.section import Section, accuracy_of, markdown_table, spread

if TYPE_CHECKING:
    from manifpt.evaluation.paired import Difference


def table_2(study: Study, methods: Sequence[ComparedMethod]) -> Section:
    """Train and evaluate all methods, once for each seed; measure FDR and paired differences.

    The last row is of file properties.
    """
    metrics: dict[str, list[EvaluationSummary]] = {}
    ratios: dict[str, list[float]] = {}
    for method in methods:
        seeds = study.seeds(method)
        metrics[method.title] = [study.evaluated(method, seed) for seed in seeds]
        ratios[method.title] = [separability(study, method, seed) for seed in seeds]
        print(_row(method, metrics[method.title], ratios[method.title]), flush=True)
    rows = [
        [method.group, *_row(method, metrics[method.title], ratios[method.title])]
        for method in methods
    ]
    files = file_properties(study)
    rows.append([LATER, TITLE, "0", accuracy_of([files]), ""])
    head = ("", "classifier works on", "networks", "accuracy", "FDR")
    chance = next(iter(metrics.values()))[0]["chance"]
    images = next(iter(metrics.values()))[0]["images"]
    text = (
        f"{images} test images, chance {chance:.3f}, seeds "
        f"{', '.join(map(str, study.config.seeds))}, {study.config.steps} steps of each network. "
        "With several seeds: mean (least-greatest); a classifier in closed form, or one seed, has "
        "the 95 % interval of a bootstrap over images. FDR is the Frechet distance between "
        "classes over that within them, of the features before the last layer.\n\n"
        f"{markdown_table(head, rows)}\n\n{told(files)}"
    )
    gains = paired_differences(study, methods)
    if gains:
        text += f"\n\n{gains_table(gains)}"
    numbers = {
        method.title: {
            "group": method.group,
            "networks": method.networks,
            "accuracy": [m["accuracy"] for m in metrics[method.title]],
            "fdr": ratios[method.title],
        }
        for method in methods
    }
    found = {
        "methods": numbers,
        "paired": {name: gain._asdict() for name, gain in gains.items()},
        "file_properties": files,
    }
    return Section("table2", "Accuracy and FDR", text, found)


def separability(study: Study, method: ComparedMethod, seed: int) -> float:
    """Return the Frechet distance ratio of a method's features of test images."""
    from manifpt.evaluation.features import head_features
    from manifpt.evaluation.separability import frechet_ratio

    model = study.attributor(method, seed)
    features = head_features(model, study.inputs(method))
    return frechet_ratio(features.vectors, features.sources).ratio


def paired_differences(study: Study, methods: Sequence[ComparedMethod]) -> dict[str, "Difference"]:
    """Return paired differences, by ``NAME instead of NAME``.

    They compare rows at equal numbers of networks, and the last row, the best of ours, with each
    method that was published before the paper.
    """
    from manifpt.evaluation import paired

    by_title = {method.title: method for method in methods}
    pairs = [pair for pair in PAIRS if by_title.keys() >= set(pair)]
    last = methods[-1].title
    pairs += [(last, m.title) for m in methods if m.group == PUBLISHED and m.title != last]
    seeds = study.config.seeds

    def hits(title: str) -> np.ndarray:
        method = by_title[title]
        found = paired.hits([study.evaluation(method.name, s) for s in study.seeds(method)])
        return found.repeat(len(seeds), 0) if len(found) < len(seeds) else found

    return {f"{a} instead of {b}": paired.difference(hits(a), hits(b)) for a, b in pairs}


def gains_table(gains: dict[str, "Difference"]) -> str:
    """Return paired differences in Markdown, with p-values corrected by Holm's method."""
    from manifpt.evaluation.significance import holm

    adjusted = holm({name: gain.p_value for name, gain in gains.items()})
    rows = [[name, str(gain), f"{adjusted[name]:.4f}"] for name, gain in gains.items()]
    head = ("accuracy of one row less that of another", "difference (95 % interval)", "p, Holm")
    note = "The same test images; a bootstrap crossed over images and seeds."
    return f"{note}\n\n{markdown_table(head, rows)}"


def _row(
    method: ComparedMethod, metrics: Sequence[EvaluationSummary], ratios: Sequence[float]
) -> list[str]:
    return [method.title, str(method.networks), accuracy_of(metrics), spread(ratios, 1)]
