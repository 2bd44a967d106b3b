"""Table 4 of the paper: training on one benchmark, test on another, over shared recipes."""

from collections.abc import Sequence

from manifpt.evaluation.evaluation_format import EvaluationSummary
from manifpt.jobs.reproduction.benchmark_study import Study
from manifpt.jobs.reproduction.methods import DEGRADED, PLAIN, ComparedMethod
from manifpt.jobs.reproduction.section import Section, accuracy_of, markdown_table

SAME, TARGET, SOURCE = "same data set", "target reals", "source reals"
COLUMNS = (SAME, TARGET, SOURCE)
Results = dict[str, list[EvaluationSummary]]


def has_manifold(method: ComparedMethod) -> bool:
    """Tell whether a method reads deviations from reals."""
    return any(place.kind not in (PLAIN, DEGRADED) for place in method.places)


def table_4(
    first: Study, second: Study, methods: Sequence[ComparedMethod], shared: Sequence[str]
) -> Section:
    """Train on each of two benchmarks, test on both; ``shared`` are the sources of both.

    The manifold of a method is that of the target's reals, or in another column that of the
    source's.
    """
    numbers: dict[str, dict[str, dict[str, list[float]]]] = {}
    rows = []
    for method in methods:
        cells: dict[str, Results] = {}
        for source, target in ((first, second), (second, first)):
            name = f"{title_of(source)} to {title_of(target)}"
            cells[name] = transferred(source, target, method, shared)
        numbers[method.title] = {
            name: {column: [m["accuracy"] for m in each] for column, each in results.items()}
            for name, results in cells.items()
        }
        row = [method.title]
        for results in cells.values():
            row += [accuracy_of(results[column]) if column in results else "" for column in COLUMNS]
        print(" | ".join(row), flush=True)
        rows.append(row)
    names = list(next(iter(numbers.values())))
    head = ["trained on", *(f"{name}: {column}" for name in names for column in COLUMNS)]
    text = (
        f"Trained on the {len(shared)} sources that both benchmarks have, which are "
        f"{', '.join(shared)}; chance {1 / len(shared):.3f} if all have as many images. Artifacts "
        "of the other benchmark's images are deviations from its own reals (target reals) or from "
        f"those of training (source reals).\n\n{markdown_table(head, rows)}"
    )
    return Section("table4", "From one data set to another", text, numbers)


def transferred(
    source: Study, target: Study, method: ComparedMethod, shared: Sequence[str]
) -> Results:
    """Return the metrics of each column, one for each seed."""
    seeds = source.seeds(method)
    results = {
        SAME: [source.evaluated(method, seed, trained=source, known=shared) for seed in seeds],
        TARGET: [target.evaluated(method, seed, trained=source, known=shared) for seed in seeds],
    }
    if has_manifold(method):
        results[SOURCE] = [
            target.evaluated(method, seed, trained=source, reals=source, known=shared)
            for seed in seeds
        ]
    return results


def title_of(study: Study) -> str:
    """Return the name of a benchmark's folder."""
    return study.benchmark.rstrip("/").rpartition("/")[2]
