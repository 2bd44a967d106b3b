"""Patterns of URIs: ``{a,b}`` and ``{00..99}`` as in a shell, ``*``, ``?``, ``[..]`` and ``**``."""

import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images.listing import Found, Listing, files, hidden, objects

MOST = 100_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_WILD = re.compile(r"[*?\[]")
_SPECIAL = re.compile(r"[*?\[{]")


def is_pattern(uri: str) -> bool:
    """Tell whether a URI is a pattern, and not the literal name of a file or folder."""
    if storage.is_remote(uri) and _SPECIAL.search(uri.split("/")[2]):
        return True
    return bool(_SPECIAL.search(uri)) and not storage.exists(uri)


def braces(text: str) -> Iterator[str]:
    """Yield a shell's expansions of a text with braces; braces with nothing to choose stay.

    The numbers of a range have as many digits as the longer end, if one begins with a zero.
    """
    found = _first_group(text) if "{" in text else None
    if found is None:
        yield text
        return
    start, end, parts = found
    inside = text[start + 1 : end]
    span = _RANGE.fullmatch(inside) if len(parts) == 1 else None
    if len(parts) == 1 and span is None:
        # A pair that chooses nothing stays; the text inside it and after it is expanded.
        parts = [f"{{{middle}}}" for middle in braces(inside)]
        yield from _joined(text[:start], parts, text[end + 1 :])
        return
    chosen = _numbers(*span.groups()) if span else (m for part in parts for m in braces(part))
    yield from _joined(text[:start], chosen, text[end + 1 :])


def _joined(head: str, middles: Iterable[str], tail: str) -> Iterator[str]:
    for middle in middles:
        for rest in braces(tail):
            yield head + middle + rest


def _first_group(text: str) -> tuple[int, int, list[str]] | None:
    """Return begin and end of the first closed pair of braces, and its parts by commas."""
    for start in (match.start() for match in re.finditer("{", text)):
        depth, parts, begin = 0, list[str](), start + 1
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0 or (depth == 1 and text[at] == ","):
                parts.append(text[begin:at])
                begin = at + 1
            if depth == 0:
                return start, at, parts
    return None


def _numbers(first: str, last: str, step: str | None) -> Iterator[str]:
    ends = [text.lstrip("-") for text in (first, last)]
    padded = any(len(digits) > 1 and digits.startswith("0") for digits in ends)
    width = max(len(first), len(last)) if padded else 0
    stride = abs(int(step or 1)) or 1
    start, stop = int(first), int(last)
    values = range(start, stop + 1, stride) if start <= stop else range(start, stop - 1, -stride)
    return (f"{value:0{width}d}" for value in values)


def matches(path: list[str], pattern: list[str]) -> bool:
    """Tell whether a path, or a folder above it, is one that the pattern names, part by part."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(matches(path[start:], pattern[1:]) for start in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])


def leads(folder: list[str], pattern: list[str]) -> bool:
    """Tell whether a path in a folder may match the pattern."""
    if not folder or not pattern or pattern[0] == "**":
        return True
    return fnmatchcase(folder[0], pattern[0]) and leads(folder[1:], pattern[1:])


def root_of(pattern: str) -> str:
    """Return the folder of a pattern: the path before its first special part."""
    match = _SPECIAL.search(pattern)
    return pattern[: pattern.rindex("/", 0, match.start())] if match else pattern


class Pattern:
    """A pattern of URIs, and the files that it names, each of them once.

    Each match is read like an input of its own: a folder with all its files. A choice in braces
    without a match is an error, since a shard may be missing.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.root = root_of(uri)
        if storage.is_remote(uri) and _SPECIAL.search(uri.split("/")[2]):
            raise ManifptError(f"--input {uri}: a bucket's name can't be a pattern; name it")

    @cached_property
    def choices(self) -> dict[str, int]:
        """The patterns without braces that it expands to, and their order."""
        found: dict[str, int] = {}
        for number, choice in enumerate(braces(self.uri)):
            if number == MOST:
                raise ManifptError(f"--input {self.uri}: more than {MOST} choices; split it")
            found.setdefault(choice.rstrip("/"), number)
        return found

    @cached_property
    def wild(self) -> dict[str, list[tuple[int, list[str]]]]:
        """The choices with wildcards, by root: their order, and their parts below it."""
        found: dict[str, list[tuple[int, list[str]]]] = {}
        for choice, number in self.choices.items():
            if _WILD.search(choice):
                root = root_of(choice)
                parts = choice[len(root) + 1 :].split("/")
                found.setdefault(root, []).append((number, parts))
        return found

    def files(self, seen: Listing) -> Iterator[Found]:
        """Yield the files, choice by choice; ``seen.skipped`` counts the items left out."""
        for choice, number in self.choices.items():
            empty = True
            for found in self._files(choice, Listing(seen.skipped)):
                empty = False
                if not self._named_before(found.uri, number):
                    yield found
            if empty:
                what = f" ({choice})" if choice != self.uri else ""
                raise ManifptError(f"--input {self.uri}: names no file{what}; check the path")

    def _files(self, choice: str, seen: Listing) -> Iterator[Found]:
        if not _WILD.search(choice):
            yield from files(choice, seen)
            return
        root = root_of(choice)
        parts = choice[len(root) + 1 :].split("/")
        for found in self._under(root, choice, parts, seen):
            inside = found.uri[len(root) + 1 :]
            if not matches(inside.split("/"), parts):
                continue
            if hidden(inside):
                seen.skipped["hidden"] += 1
            else:
                yield found

    def _under(self, root: str, choice: str, parts: list[str], seen: Listing) -> Iterator[Found]:
        if storage.is_remote(choice):
            key = storage.bucket_and_key(choice)[1]
            return objects(choice, _WILD.split(key)[0], seen)
        return files(
            root or "/", seen, lambda folder: leads(folder.split("/") if folder else [], parts)
        )

    def _named_before(self, uri: str, number: int) -> bool:
        """Tell whether an earlier choice names this file, or a folder that it is in."""
        if number == 0:
            return False
        if self.choices.get(uri, number) < number:
            return True
        for above in (uri[: match.start()] for match in re.finditer("/", uri)):
            if self.choices.get(above, number) < number:
                return True
            inside = uri[len(above) + 1 :].split("/")
            for earlier, parts in self.wild.get(above, ()):
                if earlier < number and matches(inside, parts):
                    return True
        return False
