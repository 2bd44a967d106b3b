"""Columns that name the source and the split of rows: by their names, or by Hugging Face's schema.

Images of a generator and reals may lie in one file. So where the user names a file's source, rows
that a source column calls real are real in spite of that.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from manifpt.errors import ManifptError, public
from manifpt.images.arrangement import PAIRS
from manifpt.images.sources import REAL, SPLITS, Reading, Unit, split_named, stem
from manifpt.images.text import printable, text_of

MODEL = "model_name"  # the generator, in Community-Forensics and others
# Columns of Community-Forensics; a label of 0 is real there, 1 generated.
COMMUNITY = {MODEL, "real_source", "label"}
_SHARD = re.compile(r"(?:^|[/_.-])([a-z]+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")


class Columns(NamedTuple):
    """How the rows of one file are read, and whether a row's own source counts alone."""

    reading: Reading
    alone: bool = False
    why: str = ""


def names_of_classes(names: Sequence[str]) -> list[str]:
    """Return the sources that class labels stand for: reals have their own name."""
    lower = {name.lower() for name in names}
    real = next((pair[0] for pair in PAIRS if set(pair) == lower), REAL)
    return [REAL if name.lower() == real else printable(name) for name in names]


def is_pair(names: Sequence[str]) -> bool:
    """Tell whether class labels are of reals and of generated images, whichever these are."""
    return any(set(pair) == {name.lower() for name in names} for pair in PAIRS)


def columns_of(
    uri: str,
    names: Sequence[str],
    labels: Mapping[str, Sequence[str]],
    source: str | None,
    reading: Reading,
    *,
    labelled: bool,
    reals_only: bool,
) -> Columns:
    """Return how a file's rows name their sources and splits, as far as its columns tell.

    ``source`` is the name that the user gave, ``labels`` the names of class labels. Only jobs that
    need sources, or reals, look for a column that the user does not name.
    """
    for option, column in (("source", reading.source_column), ("split", reading.split_column)):
        if column is not None and column not in names:
            shown = ", ".join(names)[:200]
            raise ManifptError(f"--{option}-column {column}: {public(uri)} has only {shown}")
    if reading.source_column is not None:
        return Columns(reading, alone=reals_only)
    if not (labelled or reals_only) or "source" in names:
        return Columns(reading)
    pairs = [column for column in labels if is_pair(labels[column])]
    if set(names) >= COMMUNITY:
        column, why = MODEL, "Community-Forensics"
    elif len(pairs) == 1:
        column, why = pairs[0], f"class labels {', '.join(labels[pairs[0]])}"
    elif source is not None or reals_only:
        return Columns(reading)
    elif MODEL in names:
        column, why = MODEL, "generators"
    elif len(labels) == 1:
        column, why = next(iter(labels)), f"{len(labels[next(iter(labels))])} class labels"
    elif labels:
        raise ManifptError(
            f"--input {public(uri)}: class labels in {', '.join(labels)}; name one by "
            "--source-column, or the source of all by NAME=PATH"
        )
    else:
        return Columns(reading)
    if source == REAL and not reals_only:
        raise ManifptError(
            f"--input {public(uri)}: named real, and its column {column} names generated images, "
            "too; name the generator, NAME=PATH, or give no name"
        )
    found = replace(reading, source_column=column)
    if reals_only and reading.split_column is None:
        found = replace(found, split_column="")  # reals of train estimate a manifold, too
    return Columns(
        found,
        alone=reals_only,
        why=f"sources by its column {column} ({why})",
    )


def split_of_shard(uri: str) -> str | None:
    """Return the split in the name of a Parquet shard, as in ``train-00000-of-00004.parquet``."""
    match = _SHARD.search(stem(uri))
    return split_named(match[1]) if match else None


def declaring(reading: Reading) -> tuple[str, ...]:
    """Return the columns that ``declared`` looks at."""
    community = sorted(COMMUNITY) if reading.source_column == MODEL else ()
    return (reading.source_column or "source", reading.split_column or "split", *community)


def strict(reading: Reading) -> tuple[str, ...]:
    """Return those columns that count only where they hold strings: nobody has named them."""
    given = (reading.source_column and "source", reading.split_column and "split")
    return tuple(name for name in ("source", "split") if name not in given)


def spelled(
    row: dict[str, str | None], labels: Mapping[str, Sequence[str]], reading: Reading
) -> dict[str, str | None]:
    """Return a row with the names of class labels in place of their numbers."""
    found = dict(row)
    for column in (reading.source_column, reading.split_column):
        if column in labels and column in row:
            names, number = names_of_classes(labels[column]), row[column] or ""
            known = number.isascii() and number.isdigit() and int(number) < len(names)
            found[column] = names[int(number)] if known else None
    return found


def declared(facts: Mapping[str, Any], reading: Reading) -> tuple[str | None, str | None]:
    """Return the source and the split that a row, or a sample of a tar, says it has."""
    if reading.source_column is None:
        given = facts.get("source")
        source = printable(given) if isinstance(given, str) else None
    else:
        source = _named(facts.get(reading.source_column))
        community = reading.source_column == MODEL and facts.keys() >= COMMUNITY
        if community and text_of(facts["label"]) == "0":
            source = REAL
    if reading.split_column is None:
        split = facts.get("split")
        return source, split if split in SPLITS else None
    value = text_of(facts.get(reading.split_column)) or ""
    return source, split_named(value) or (value if value in SPLITS else None)


def _named(value: object) -> str | None:
    text = text_of(value)
    if not text:
        return None
    return REAL if text.lower() == REAL else printable(text)


def source_of(unit: Unit, own: str | None) -> str | None:
    """Return the source of a row whose own columns say ``own``: the unit's, if that has one."""
    if unit.source is None or (unit.reading.source_column is not None and own == REAL):
        return own
    return unit.source
