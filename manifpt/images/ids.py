"""Ids of images: each image of a job has its own, for any names of files.

An id consists of names from outside (files, members of tars, cells of tables) and of marks. Names
are escaped and never contain ``~``, so a ``~`` in an id is always a mark.

    a~/x.png      a file in a folder ``a``, beside a container with ids that begin with ``a/``
    a.tgz~2/x     an image of the container ``a.tgz``, if the names ``a`` and ``a.tgz`` are taken
    t/x~2         the second ``x`` of a container
    t/name~12     row 12 of a table with the value ``name`` in its id column
    t/~broken     the rest of a container that could not be read
    x~tile3       tile 3 of the image ``x``, as a point of a manifold; tile 0 has the image's id
"""

import re
from collections import Counter

from manifpt.images.sources import stem

_PERCENT = "%(?=[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4})"
_ODD = re.compile(f"[\0\ud800-\udfff]|{_PERCENT}")
_TILE = re.compile(r"~tile\d+$")
_AMBIGUOUS = re.compile(f"[~\0\ud800-\udfff]|{_PERCENT}")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's form of a byte that is not UTF-8
        return f"%{code - 0xDC00:02X}"
    return f"%u{code:04X}" if code >= 0xD800 else f"%{code:02X}"


def escaped(name: str) -> str:
    """Return the form of a name in ids: unique for each name, valid UTF-8, without ``~``.

    ``~``, NUL and bytes that are not UTF-8 become ``%XX``, and other lone surrogates ``%uXXXX``. A
    ``%`` that looks like the start of such a code becomes ``%25``. Other characters stay.
    """
    return _AMBIGUOUS.sub(_escape, name)


def member_uri(container: str, member: str) -> str:
    """Return the URI of a tar's member; percent-decoding its fragment gives the member's name."""
    return f"{container}#{_ODD.sub(_escape, member)}"


def broken_id(prefix: str, first_row: int | None = None) -> str:
    """Return the id of the unread rest of a container, or of a table from ``first_row`` on."""
    return f"{prefix}/~broken" + ("" if first_row is None else f"-{first_row:08d}")


def row_id(prefix: str, number: int, name: str | None = None) -> str:
    """Return the id of a row of a table; the row's number makes it unique."""
    inside = f"{number:08d}" if name is None else f"{escaped(name)}~{number}"
    return f"{prefix}/{inside}"


def tile_id(image: str, tile: int) -> str:
    """Return the id of a tile of an image, as a point of a manifold."""
    return f"{image}~tile{tile}" if tile else image


def image_id(tile: str) -> str:
    """Return the id of the image of a tile of this id."""
    return _TILE.sub("", tile)


class Keys:
    """The ids of the items of one container, in its order; repeated names get a number."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._seen: Counter[str] = Counter()

    def id(self, name: str) -> str:
        """Return the id of the next item with this name."""
        self._seen[name] += 1
        count = self._seen[name]
        return f"{self._prefix}/{escaped(name)}" + (f"~{count}" if count > 1 else "")


class Names:
    """Gives ids to an input's files, and prefixes of ids to its containers, during the listing.

    The ids of a container begin with its name without the ending, unless a folder or another
    container has that name already. Names with the same beginning must follow each other, as in a
    sorted listing. With ``anyhow`` they may come in any order, but then all folders and containers
    are held in memory.
    """

    def __init__(self, prefix: str = "", *, anyhow: bool = False) -> None:
        self._prefix = f"{prefix}/" if prefix else ""
        self._anyhow = anyhow
        self._open: list[str] = []  # the names below, the latest last
        self._folders: dict[str, str] = {}
        self._claimed: set[str] = set()
        self._stems: set[str] = set()

    def file(self, path: str) -> str:
        """Return the id of the file with this path inside the input."""
        folder, name = self._placed(path)
        return self._folder(folder) + escaped(name)

    def container(self, path: str, *, whole: bool = False) -> str:
        """Return the prefix of a container's ids; ``whole`` keeps the ending of its name."""
        folder, name = self._placed(path)
        prefix, short = self._folder(folder), stem(name)
        self._stems.add(folder + short)
        self._open.append(folder + short)
        for own in (name,) if whole else (short, name):
            if folder + own not in self._claimed and folder + own not in self._folders:
                self._claimed.add(folder + own)
                self._open.append(folder + own)
                return prefix + escaped(own)
        return f"{prefix}{escaped(name)}~2"

    def is_stem(self, path: str) -> bool:
        """Tell whether a container that was just listed has this path without its ending."""
        return path in self._stems

    def _placed(self, path: str) -> tuple[str, str]:
        """Split a path into folder, with its slash, and name; forget names that have passed."""
        while not self._anyhow and self._open and not path.startswith(self._open[-1]):
            passed = self._open.pop()
            self._folders.pop(passed, None)
            self._claimed.discard(passed)
            self._stems.discard(passed)
        at = path.rfind("/") + 1
        return path[:at], path[at:]

    def _folder(self, path: str) -> str:
        """Return the prefix of ids in a folder, given with its slash; "" is the input itself."""
        made, start = self._prefix, 0
        while start < len(path):
            end = path.index("/", start)
            folder = path[:end]
            if folder not in self._folders:
                mark = "~" if folder in self._claimed else ""
                self._folders[folder] = f"{made}{escaped(path[start:end])}{mark}/"
                self._open.append(folder)
            made, start = self._folders[folder], end + 1
        return made
