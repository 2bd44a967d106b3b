"""Where images are: inputs as the user names them -> units of work, always in the same order."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from manifpt import storage
from manifpt.errors import ManifptError

FILES_PER_UNIT = 1024
TARS = (".tar", ".tar.gz", ".tgz")
PARQUET = (".parquet", ".pq")
SPLITS = ("manifold", "train", "validation", "test")
CARD = "card.json"

_NAMED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9_.+-]*)=(.+)$", re.DOTALL)


@dataclass(frozen=True)
class Input:
    """One ``--input``: a URI, and the name of its source where ``NAME=URI`` gives one."""

    uri: str
    source: str | None = None
    split: str | None = None
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> "Input":
        """Read ``URI`` or ``NAME=URI``."""
        match = _NAMED.match(text)
        name, uri = match.groups() if match else (None, text)
        return cls(storage.absolute(uri), name, prefix=name or "")


@dataclass(frozen=True)
class Selection:
    """Which images a job wants: those of these splits and sources, and those that declare none."""

    splits: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None

    def keeps(self, source: str | None, split: str | None) -> bool:
        """Tell whether an image of this source and split is wanted."""
        return (self.splits is None or split is None or split in self.splits) and (
            self.sources is None or source is None or source in self.sources
        )


# Of a benchmark, the reals that estimate the manifold.
MANIFOLD_REALS = Selection(splits=("manifold",), sources=("real",))


@dataclass(frozen=True)
class Unit:
    """A piece of input that one task reads: some files of a folder, one tar, or one Parquet file.

    ``ids`` are those of the files, or the prefix of the ids inside the one container; ``bytes``
    is the size of them all.
    """

    kind: Literal["files", "tar", "parquet"]
    uris: tuple[str, ...]
    ids: tuple[str, ...]
    source: str | None
    split: str | None
    bytes: int = 0


def _stem(path: str) -> str:
    for ending in (*TARS, *PARQUET):
        path = path.removesuffix(ending)
    return path


def _from_card(given: Input) -> list[Input] | None:
    """Expand the folder of a benchmark into its tars, each with its source and split."""
    card_uri = storage.join(given.uri, CARD)
    if given.uri.endswith((*TARS, *PARQUET)) or not storage.exists(card_uri):
        return None
    card = storage.read_json(card_uri)
    return [
        Input(
            storage.join(given.uri, file["path"]),
            file["source"],
            file["split"],
            storage.join(given.prefix, str(PurePosixPath(file["path"]).parent)),
        )
        for file in card["files"]
    ]


def _subfolders(given: Input) -> list[Input]:
    """Name the sources of an unnamed folder after its subfolders, where it holds nothing else."""
    if given.source is not None or given.uri.endswith((*TARS, *PARQUET)):
        return [given]
    inside = [uri[len(given.uri) + 1 :] for uri, _ in storage.files_under(given.uri)]
    if not inside or not all("/" in path for path in inside):
        return [given]
    names = sorted({path.split("/", 1)[0] for path in inside})
    return [
        Input(storage.join(given.uri, name), name, prefix=storage.join(given.prefix, name))
        for name in names
    ]


def _units(given: Input) -> list[Unit]:
    """Cut one input into units."""
    found = storage.files_under(given.uri)
    root = given.uri + "/"
    if [uri for uri, _ in found] == [given.uri]:
        root = given.uri[: -len(storage.base_name(given.uri))]
    units: list[Unit] = []
    loose: list[tuple[str, str, int]] = []
    for uri, size in found:
        name = storage.join(given.prefix, uri[len(root) :])
        label = (given.source, given.split)
        if uri.endswith(TARS):
            units.append(Unit("tar", (uri,), (_stem(name),), *label, size))
        elif uri.endswith(PARQUET):
            units.append(Unit("parquet", (uri,), (_stem(name),), *label, size))
        else:
            loose.append((uri, name, size))
    for start in range(0, len(loose), FILES_PER_UNIT):
        uris, ids, sizes = zip(*loose[start : start + FILES_PER_UNIT], strict=True)
        units.append(Unit("files", uris, ids, given.source, given.split, sum(sizes)))
    return units


def plan(
    inputs: Sequence[str],
    selection: Selection = Selection(),
    *,
    labelled: bool = False,
    source: str | None = None,
) -> list[Unit]:
    """Return the units of work behind ``--input``, in an order that storage does not change.

    A benchmark's card says which source and split each file belongs to; units that ``selection``
    does not keep are left out unread. With ``labelled``, an unnamed folder that holds only
    folders names one source each. ``source`` replaces the names that the user gave.
    """
    given = [Input.parse(text) for text in inputs]
    if len(given) > 1:
        given = [replace(i, prefix=i.prefix or storage.base_name(i.uri)) for i in given]
    if len({(i.prefix, i.uri) for i in given}) < len(given):
        raise ManifptError("--input: the same input is given twice; give each once")
    if len({i.prefix for i in given if i.source is None}) < sum(i.source is None for i in given):
        raise ManifptError("--input: two inputs end in the same name; tell them apart by NAME=URI")
    kept: list[Unit] = []
    for one in given:
        expanded = _from_card(one)
        if expanded is None:
            named = replace(one, source=source) if source and one.source else one
            expanded = _subfolders(named) if labelled else [named]
        pieces = [unit for part in expanded for unit in _units(part)]
        if not pieces:
            missing = not storage.exists(one.uri)
            reason = "no such file or folder" if missing else "holds no files"
            raise ManifptError(f"--input {one.uri}: {reason}; check the path")
        kept += [unit for unit in pieces if selection.keeps(unit.source, unit.split)]
    if not kept:
        raise ManifptError(f"--input: nothing in it is of {selection}; check its {CARD}")
    return kept


def content_key(units: Sequence[Unit]) -> str:
    """Hash what the units hold (names and sizes, not where they lie), to know an input again."""
    return storage.digest([[u.kind, u.ids, u.source, u.split, u.bytes] for u in units])


def describe(inputs: Sequence[str], units: Sequence[Unit]) -> dict[str, Any]:
    """Say what the inputs are, for manifests: name and place, kinds, sizes, sources and hash."""
    kinds = [unit.kind for unit in units]
    given = [Input.parse(text) for text in inputs]
    return {
        "given": [f"{i.source}={i.uri}" if i.source else i.uri for i in given],
        "units": len(units),
        "bytes": sum(unit.bytes for unit in units),
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "sources": sorted({unit.source for unit in units if unit.source is not None}),
        "content_key": content_key(units),
    }
