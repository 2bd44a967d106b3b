"""Types of options with a notation of their own, and marks of options that are no flags."""

import re
from typing import Annotated

from pydantic import AfterValidator, JsonValue

# Given to a field, it is an argument by its place, not by a flag.
POSITIONAL: dict[str, JsonValue] = {"positional": True}
# Given to a field, only the file that --config names can hold it.
IN_FILE: dict[str, JsonValue] = {"in_file": True}


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w. -]{0,99}", name):
        raise ValueError(f"{name!r} is no name; take letters, digits and . _ - alone")
    return name


def _alias(alias: str) -> str:
    if not re.fullmatch(r"[A-Za-z_-][\w-]{0,99}", alias) or re.fullmatch(r"latest|v\d+", alias):
        raise ValueError(f"{alias!r} is no alias; take letters, digits and _ -, no version")
    return alias


# Names and aliases that MLflow's registry and its URIs accept.
ModelName = Annotated[str, AfterValidator(_model_name)]
Alias = Annotated[str, AfterValidator(_alias)]


def _degradations(texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
    from manifpt.images.degrade import Degradation  # not needed for --help

    for text in texts or ():
        Degradation.parse(text)
    return texts


def _degrade(texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return texts if texts in (None, NO_COPIES) else _ranges(texts)


def _ranges(texts: tuple[str, ...]) -> tuple[str, ...]:
    from manifpt.images.degrade import StrengthRange

    for text in texts:
        StrengthRange.parse(text)
    return texts


# Notations of images.degrade: jpeg:75, or jpeg:50-95.
Degradations = Annotated[tuple[str, ...], AfterValidator(_degradations)]
OptionalDegradations = Annotated[tuple[str, ...] | None, AfterValidator(_degradations)]
Ranges = Annotated[tuple[str, ...], AfterValidator(_ranges)]
NO_COPIES = ("none",)
OptionalRanges = Annotated[tuple[str, ...] | None, AfterValidator(_degrade)]
