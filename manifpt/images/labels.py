"""Columns that name the source and the split of rows: by their names, or by Hugging Face's schema.

Images of a generator and reals may lie in one file. If the user names a file's source, rows that a
source column calls real are nevertheless real.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from manifpt.errors import ManifptError, public
from manifpt.images import arrangement
from manifpt.images.arrangement import PAIRS, Arrangement
from manifpt.images.sources import REAL, SPLITS, Input, Reading, Unit, split_named, stem
from manifpt.images.text import printable, text_of

MODEL = "model_name"  # the generator, in Community-Forensics and others
# Columns of Community-Forensics; a label of 0 is real there, 1 generated.
COMMUNITY = {MODEL, "real_source", "label"}
_SHARD = re.compile(r"(?:^|[/_.-])([a-z]+)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?$")


class Columns(NamedTuple):
    """The reading of one file's rows, and whether a row's own source counts alone."""

    reading: Reading
    alone: bool = False
    why: str = ""


def names_of_classes(names: Sequence[str]) -> list[str]:
    """Return the sources that class labels stand for: reals have their own name."""
    lower = {name.lower() for name in names}
    real = next((pair[0] for pair in PAIRS if set(pair) == lower), REAL)
    return [REAL if name.lower() == real else printable(name) for name in names]


def is_pair(names: Sequence[str]) -> bool:
    """Tell whether class labels are one of reals and one of generated images."""
    return any(set(pair) == {name.lower() for name in names} for pair in PAIRS)


@dataclass(frozen=True)
class LabelRequest:
    """The reading of inputs, and its purpose: their sources, or only their reals, or neither."""

    reading: Reading
    labelled: bool
    source: str | None  # replaces the names that the user gave

    @property
    def reals_only(self) -> bool:
        """Whether generated images are left out."""
        return self.source == REAL

    def named(self, given: Input) -> Input:
        """Return an input with its name in this job."""
        return replace(given, source=self.source) if self.source and given.source else given

    def arranged(self, given: Input) -> Arrangement | None:
        """Return the folders of sources in an input, if it has any and the job needs them."""
        if not self.labelled and not self.reals_only:
            return None
        found = arrangement.pairs_of(given, reals_only=self.reals_only)
        classes = found is None and self.labelled and given.source is None
        return arrangement.classes_of(given) if classes else found

    def columns(
        self,
        uri: str,
        names: Sequence[str],
        labels: Mapping[str, Sequence[str]],
        source: str | None,
    ) -> Columns:
        """Return the columns by which a file's rows name their sources and splits.

        ``source`` is the name that the user gave, ``labels`` the names of class labels. Only jobs
        that need sources, or reals, look for a column that the user does not name.
        """
        reading = self.reading
        for option, column in (("source", reading.source_column), ("split", reading.split_column)):
            if column is not None and column not in names:
                shown = ", ".join(names)[:200]
                raise ManifptError(f"--{option}-column {column}: {public(uri)} has only {shown}")
        if reading.source_column is not None:
            if source == REAL and not self.reals_only:
                raise ManifptError(
                    f"--source-column {reading.source_column}: {public(uri)} is named real, too; "
                    "name the generator, NAME=PATH, or give no name"
                )
            return Columns(reading, alone=self.reals_only)
        if not (self.labelled or self.reals_only) or "source" in names:
            return Columns(reading)
        mixed, why = _recognised(uri, names, labels, named=source is not None or self.reals_only)
        if mixed is None:
            return Columns(reading)
        if source == REAL and not self.reals_only:
            raise ManifptError(
                f"--input {public(uri)}: named real, and its column {mixed} names generated "
                "images, too; name the generator, NAME=PATH, or give no name"
            )
        found = replace(reading, source_column=mixed)
        if self.reals_only and reading.split_column is None:
            found = replace(found, split_column="")  # reals of train estimate a manifold, too
        return Columns(found, self.reals_only, f"sources by its column {mixed} ({why})")


def _recognised(
    uri: str, names: Sequence[str], labels: Mapping[str, Sequence[str]], *, named: bool
) -> tuple[str | None, str]:
    """Return the column of sources, if there is one, and the reason for its choice.

    If the user ``named`` the source, only a column of reals and generated images counts.
    """
    pairs = [column for column in labels if is_pair(labels[column])]
    if set(names) >= COMMUNITY:
        return MODEL, "Community-Forensics"
    if len(pairs) == 1:
        return pairs[0], f"class labels {', '.join(labels[pairs[0]])}"
    if named:
        return None, ""
    if MODEL in names:
        return MODEL, "generators"
    if len(labels) > 1:
        raise ManifptError(
            f"--input {public(uri)}: class labels in {', '.join(labels)}; name one by "
            "--source-column, or the source of all by NAME=PATH"
        )
    return next(((one, f"{len(labels[one])} class labels") for one in labels), (None, ""))


def split_of_shard(uri: str) -> str | None:
    """Return the split in the name of a Parquet shard, as in ``train-00000-of-00004.parquet``."""
    match = _SHARD.search(stem(uri))
    return split_named(match[1]) if match else None


def declaring(reading: Reading) -> tuple[str, ...]:
    """Return the columns that ``declared`` reads."""
    community = sorted(COMMUNITY) if reading.source_column == MODEL else ()
    return (reading.source_column or "source", reading.split_column or "split", *community)


def strict(reading: Reading) -> tuple[str, ...]:
    """Return the columns that count only if they hold strings, because no user named them."""
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
    """Return the source and the split that a row, or a sample of a tar, declares."""
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
    """Return the source of a row with the source ``own``: the unit's, if that has one."""
    if unit.source is None or (unit.reading.source_column is not None and own == REAL):
        return own
    return unit.source
