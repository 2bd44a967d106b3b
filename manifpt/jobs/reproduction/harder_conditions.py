"""Classifiers of vectors where training is harder: few images, or content that training lacks."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from manifpt.evaluation import conditions, paired
from manifpt.evaluation.design_choices import read_design_choices
from manifpt.jobs.reproduction.accuracy import gains_table
from manifpt.jobs.reproduction.benchmark_study import Study
from manifpt.jobs.reproduction.methods import PLAIN, PUBLISHED, ArtifactPlace, ComparedMethod
from manifpt.jobs.reproduction.section import Section, markdown_table, spread

Measured = TypeVar("Measured")

COUNTS, DRAWS = (10, 30, 100), 3
CLASSIFIER = "The classifier of all rows is linear discriminant analysis."


def vector_methods(methods: Sequence[ComparedMethod]) -> list[ComparedMethod]:
    """Return the methods of vectors in closed form, one for each place of artifacts."""
    single = [m for m in methods if m.closed and not m.members]
    return list({m.place: m for m in reversed(single)}.values())[::-1]


def classes_of(study: Study) -> tuple[str, ...]:
    """Return the classes of the study's classifiers."""
    return study.config.sources or ("real", *read_design_choices(study.benchmark)[0])


def few(study: Study, methods: Sequence[ComparedMethod]) -> Section:
    """Measure accuracy against the number of training images of each class."""

    def measured(data: conditions.SplitRows) -> dict[str, list[float]]:
        found = {
            str(count): conditions.few_images(data, count, DRAWS).mean(1).tolist()
            for count in COUNTS
        }
        return found | {"all": conditions.few_images(data, len(data.train.ids), 1).mean(1).tolist()}

    numbers = _of_methods(study, methods, measured)
    columns = (*map(str, COUNTS), "all")
    rows = [[title, *(spread(each[n]) for n in columns)] for title, each in numbers.items()]
    text = (
        f"{CLASSIFIER} Mean of {DRAWS} random choices of training images (least-greatest); as many "
        "validation images choose the shrinkage.\n\n"
        + markdown_table(["images of each class", *columns], rows)
    )
    return Section("few", "Accuracy against the number of training images", text, numbers)


def content(study: Study, methods: Sequence[ComparedMethod]) -> Section:
    """Compare trainings on other content than that of the test images with those on any."""
    from manifpt.artifacts.branches import open_artifacts

    place = study.artifacts_in(ArtifactPlace(PLAIN, "image"))
    shape = open_artifacts([place])[0].manifest["shape"]
    folds = conditions.content_folds(conditions.split_rows(place, classes_of(study)), shape)
    shifts = _of_methods(study, methods, lambda data: conditions.content_shift(data, folds))
    groups = {method.title: method.group for method in methods}
    gains = {title: paired.difference(s.other[None], s.same[None]) for title, s in shifts.items()}
    rows = [
        [title, f"{s.same.mean():.3f}", f"{s.other.mean():.3f}", str(gains[title])]
        for title, s in shifts.items()
    ]
    head = ("classifier works on", "any content", "other content", "difference (95 % interval)")
    left_out = next(iter(shifts.values())).left_out
    text = (
        f"{CLASSIFIER} Images are in {conditions.CLUSTERS} clusters of their coarse pixels, which "
        f"make {conditions.FOLDS} folds. Each fold is tested by a training on the other folds "
        "(other content), and by one on as many images of each class from all folds (any content). "
        f"{left_out} times a class had too few images outside of a fold, and was left out of it."
        f"\n\n{markdown_table(head, rows)}"
    )
    found: dict[str, object] = {
        title: {"same": float(s.same.mean()), "other": float(s.other.mean())}
        for title, s in shifts.items()
    }
    # The row that is compared is fixed before its accuracy is known.
    last = list(shifts)[-1]
    published = [title for title in shifts if groups[title] == PUBLISHED and title != last]
    pairs = {
        f"{last} instead of {title}": paired.difference(
            shifts[last].other[None], shifts[title].other[None]
        )
        for title in published
    }
    if pairs:
        found["paired"] = {name: gain._asdict() for name, gain in pairs.items()}
        text += f"\n\nOn other content:\n\n{gains_table(pairs)}"
    return Section("content", "Content that training lacks", text, found)


def _of_methods(
    study: Study,
    methods: Sequence[ComparedMethod],
    measured: Callable[[conditions.SplitRows], Measured],
) -> dict[str, Measured]:
    found = {}
    for method in vector_methods(methods):
        assert method.place is not None
        data = conditions.split_rows(study.artifacts_in(method.place), classes_of(study))
        found[method.title] = measured(data)
    return found
