"""Folders that name sources and splits, in the layouts of known data sets.

CNNDetection and AIGCDetectBenchmark: ``GENERATOR/0_real`` and ``1_fake``, or with classes between,
``GENERATOR/cat/0_real``. GenImage: ``GENERATOR/train/nature`` and ``ai``. Others: ``real`` and
``fake``. ImageFolder: a folder for each class, or ``train/CLASS`` and ``test/CLASS``. Where more
than one reading is possible, it is an error that names the remedy.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from manifpt import storage
from manifpt.errors import ManifptError, public
from manifpt.images.listing import Inside, inside
from manifpt.images.sources import PARQUET, REAL, TABLES, TARS, Input, split_named

# Names of folders of reals and of the folders of generated images beside them, with the data set.
PAIRS = {
    ("0_real", "1_fake"): "CNNDetection",
    ("nature", "ai"): "GenImage",
    ("real", "fake"): "pairs",
}
DEEPEST = 4  # folders between an input and its pairs
MOST_LOOKED_AT = 64  # folders that are searched for a pair
MOST_SHOWN = 8

Path = tuple[str, ...]


class Arrangement(NamedTuple):
    """The folders of an input, each with its source and split; ``str`` describes the layout."""

    name: str
    parts: list[Input]
    skipped: Counter[str]

    def __str__(self) -> str:
        sources = sorted({part.source for part in self.parts if part.source})
        splits = sorted({part.split for part in self.parts if part.split})
        shown = ", ".join(sources[:MOST_SHOWN]) + (", ..." if len(sources) > MOST_SHOWN else "")
        of = f" (splits {', '.join(splits)})" if splits else ""
        return f"layout {self.name}: {len(sources)} x source, {shown or 'as its files say'}{of}"


class _Pair(NamedTuple):
    """A folder of reals, one of generated images, and the layout of such names."""

    real: str | None
    fake: str | None
    kind: tuple[str, str]


def _pair(folders: list[str]) -> _Pair | None:
    """Return the pair among folders; 0_real and 1_fake also stand alone."""
    lower = {name.lower(): name for name in folders}
    for kind in PAIRS:
        if set(kind) == set(lower) or (kind[0] == "0_real" and not lower.keys().isdisjoint(kind)):
            return _Pair(lower.get(kind[0]), lower.get(kind[1]), kind)
    return None


def _tree(uri: str) -> dict[Path, Inside]:
    """Return the content of the folders down to pairs; empty if the first folders have no pair."""
    found: dict[Path, Inside] = {}
    paired, todo = False, deque[Path]([()])
    while todo:
        above = todo.popleft()
        found[above] = held = _held(uri, above)
        if _pair(held.folders):
            paired = True
        elif len(above) < DEEPEST:
            todo += [(*above, name) for name in held.folders]
        if not paired and len(found) == MOST_LOOKED_AT:
            break
    return found if paired else {}


def _held(uri: str, above: Path) -> Inside:
    """Return a folder's content; empty for a folder inside the input that cannot be listed."""
    try:
        return inside(storage.join(uri, *above))
    except ManifptError:
        if not above:
            raise
        return Inside([], [], Counter())


def pairs_of(given: Input, *, reals_only: bool = False) -> Arrangement | None:
    """Return the folders of an input that has pairs of real and generated images, else None.

    The name of the input, if any, is that of the generator. With ``reals_only`` only folders of
    reals are taken, and if there are splits, only train.
    """
    if given.uri.endswith((*TARS, *PARQUET, *TABLES)):
        return None
    tree = _tree(given.uri)
    pairs = {above: pair for above, held in tree.items() if (pair := _pair(held.folders))}
    if not pairs:
        return None
    _check(given, tree, pairs)
    placed = {above: _placed(given, above, tree) for above in pairs}
    kinds = dict.fromkeys(pair.kind for pair in pairs.values())
    name = " and ".join(f"{PAIRS[kind]} ({', '.join(kind)})" for kind in kinds)
    parts = list[Input]()
    if reals_only:
        splits = {split for split, _ in placed.values()}
        for above, pair in pairs.items():
            if pair.real and placed[above][0] in ({"train"} if "train" in splits else splits):
                parts.append(_part(given, above, pair.real, REAL, None))
        name += ", reals of train alone" if "train" in splits else ", reals alone"
    else:
        for above, source in _generators(given, pairs, placed).items():
            real, fake, _ = pairs[above]
            split = placed[above][0]
            parts += [_part(given, above, real, REAL, split)] if real else []
            parts += [_part(given, above, fake, source, split)] if fake else []
    beside = sum(len(held.files) for held in tree.values())
    skipped = sum((held.skipped for held in tree.values()), Counter({"beside_folders": beside}))
    return Arrangement(name, sorted(parts, key=lambda part: part.uri), +skipped)


def check_known(given: Input, uri: str, inside: str) -> None:
    """Raise if a file lies in a folder of reals that was not recognised as one.

    ``inside`` is its path in the input.
    """
    if "0_real" in inside.split("/")[:-1] and "0_real" not in given.uri:
        raise _refused(
            given,
            f"{public(uri)} lies in 0_real, in no known layout",
            "give each folder by itself, real=PATH and NAME=PATH",
        )


def _part(given: Input, above: Path, folder: str, source: str, split: str | None) -> Input:
    return replace(given, uri=storage.join(given.uri, *above, folder), source=source, split=split)


def _refused(given: Input, why: str, remedy: str) -> ManifptError:
    return ManifptError(f"--input {public(given.uri)}: {why}; {remedy}")


def _check(given: Input, tree: dict[Path, Inside], pairs: dict[Path, _Pair]) -> None:
    """Raise if a folder is neither in a pair nor leads to one."""
    kind = "/".join(next(iter(pairs.values())).kind)
    for above, held in tree.items():
        pair, where = pairs.get(above), "/".join(above) or "it"
        others = set(held.folders) - {pair.real, pair.fake} if pair else set()
        if others:
            raise _refused(
                given,
                f"{where} holds {sorted(others)[0]} beside {pair.real or pair.fake}",  # type: ignore[union-attr]
                "give each folder by itself, real=PATH and NAME=PATH",
            )
        if not pair and (held.files if not held.folders else len(above) == DEEPEST):
            raise _refused(
                given,
                f"{where} has no {kind}, as others in it have",
                "give each folder by itself, real=PATH and NAME=PATH",
            )


def _placed(given: Input, above: Path, tree: dict[Path, Inside]) -> tuple[str | None, Path]:
    """Return the split that a path names, and the path without it.

    A folder names a split if all folders beside it do: ``train`` among others is a class.
    """
    levels = [
        level for level in range(len(above)) if all(map(split_named, tree[above[:level]].folders))
    ]
    if len(levels) > 1:
        raise _refused(given, f"{'/'.join(above)} names two splits", "give one of them, NAME=PATH")
    if not levels:
        return None, above
    (level,) = levels
    return split_named(above[level]), above[:level] + above[level + 1 :]


def _generators(
    given: Input, pairs: dict[Path, _Pair], placed: dict[Path, tuple[str | None, Path]]
) -> dict[Path, str]:
    """Return the source of the generated images of each pair."""
    paths = {above: path for above, (_, path) in placed.items()}
    if given.source == REAL and any(pair.fake for pair in pairs.values()):
        fake = next(pair.fake for pair in pairs.values() if pair.fake)
        raise _refused(
            given, f"named real, and holds {fake}", "name the generator, NAME=PATH, or give no name"
        )
    if given.source is not None:
        return dict.fromkeys(paths, given.source)
    if not any(paths.values()):
        return {above: _own_name(given, pair) for above, pair in pairs.items()}
    if not all(paths.values()):
        raise _refused(given, "its folders are of unlike depth", "give each one, NAME=PATH")
    classes = any(pair.kind[0] != "nature" for pair in pairs.values())
    if classes and max(map(len, paths.values())) == 1:
        shown, own = ", ".join(sorted({path[0] for path in paths.values()})[:3]), given.uri
        raise _refused(
            given,
            f"{shown}, ... may be generators or classes of images",
            f"give NAME={public(own)} for classes of one generator, {public(own)}/* for generators",
        )
    return {above: path[0] for above, path in paths.items()}


def _own_name(given: Input, pair: _Pair) -> str:
    """Return the generator of an input without a name that holds a pair itself."""
    if pair.kind[0] == "real" and pair.fake:
        return pair.fake
    name = storage.base_name(given.uri)
    if not name or split_named(name):
        raise _refused(given, f"holds {pair.fake or pair.real} of what?", "name it, NAME=PATH")
    return name


def classes_of(given: Input) -> Arrangement | None:
    """Return the folders of an input that holds only folders, each of which is a source.

    Folders train, test, ... are splits, and the sources are in them.
    """
    if given.uri.endswith((*TARS, *PARQUET, *TABLES)):
        return None
    held = inside(given.uri)
    if held.files or not held.folders:
        return None
    if all(map(split_named, held.folders)):
        parts = [part for name in held.folders for part in _of_split(given, name)]
        name = "ImageFolder with splits"
    else:
        parts, name = [_class(given, (), name) for name in held.folders], "ImageFolder"
    return Arrangement(name, parts, held.skipped)


def _class(given: Input, above: Path, name: str, split: str | None = None) -> Input:
    return _part(given, above, name, REAL if name.lower() == REAL else name, split)


def _of_split(given: Input, name: str) -> Iterator[Input]:
    """Yield the folders of classes in that of a split; the folder itself if files may name them."""
    split, held = split_named(name), inside(storage.join(given.uri, name))
    if held.files and not any(f.endswith((*TARS, *PARQUET)) for f in held.files):
        raise _refused(
            given,
            f"{name} is the name of a split, and holds images of no named source",
            "give NAME=PATH",
        )
    if held.files or not held.folders:
        yield replace(given, uri=storage.join(given.uri, name), split=split)
    else:
        yield from (_class(given, (name,), one, split) for one in held.folders)
