"""One section of the results: a title, text in Markdown, and the numbers as JSON values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from manifpt.evaluation.evaluation_format import Accuracies


@dataclass(frozen=True)
class Section:
    """A part of the results, in Markdown, and the numbers that it shows."""

    name: str
    title: str
    text: str
    numbers: object


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown.

    >>> print(markdown_table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    made = ["| " + " | ".join(line) + " |" for line in lines]
    made[1] = made[1].replace(" ", "")
    return "\n".join(made)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean of the seeds, and the least and the greatest if there are several.

    >>> spread([0.5, 0.75])
    '0.625 (0.500-0.750)'
    """
    mean = f"{fmean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def accuracy_of(metrics: Sequence[Accuracies]) -> str:
    """Return the accuracy of some seeds: the 95 % interval of one, the spread of several."""
    if len(metrics) > 1:
        return spread([m["accuracy"] for m in metrics])
    only = metrics[0]
    return f"{only['accuracy']:.3f} ({only['accuracy_low']:.3f}-{only['accuracy_high']:.3f})"
