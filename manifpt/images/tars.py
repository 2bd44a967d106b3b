"""The members of a tar from any source: nothing in it is trusted or unpacked.

Headers are parsed by ``tarfile.TarInfo.frombuf``, one block each; the rest (long names, pax
headers, skipping) is done here, because TarFile reads as many bytes into memory as a header
announces, follows chains of headers by recursion, and can be led backwards by a negative size.
"""

import gzip
import os
import tarfile
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
# Bytes of names and pax headers before a member; paths have at most 4,096 bytes.
MOST_HEADER = 2**20
# The largest ratio of the content of a compressed tar to its size: images hardly compress.
MOST_RATIO = 100
_FREE = 64 * 2**20
_PIECE = 2**20
_SPARSE = "GNU.sparse."
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
CUT = "the archive ends within a member"


class TarMember(NamedTuple):
    """A file in a tar; ``data`` is None if it was refused, and ``error`` gives the reason."""

    name: str
    data: bytes | None
    error: str = ""
    message: str = ""


class _Source:
    """A tar's bytes, read forwards, decompressed if they are gzip."""

    def __init__(self, file: IO[bytes]) -> None:
        self._raw = file
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        self._file: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=file) if packed else file
        self._packed, self._read = packed, 0

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, fewer only at the end."""
        pieces = bytearray()
        while len(pieces) < size:
            piece = self._file.read(min(size - len(pieces), _PIECE))
            if not piece:
                break
            pieces += piece
            self._count(len(piece))
        return bytes(pieces)

    def skip(self, size: int) -> None:
        """Move on by ``size`` bytes; EOFError if there are fewer."""
        if self._packed:
            while size and (piece := self.read(min(size, _PIECE))):
                size -= len(piece)
            if size:
                raise EOFError(CUT)
        elif size:
            try:
                self._file.seek(size - 1, os.SEEK_CUR)
                there = self._file.read(1)
            except (OSError, OverflowError, ValueError):
                there = b""  # no file has such a place
            if not there:
                raise EOFError(CUT)

    def end(self) -> None:
        """Read the rest if it is compressed: only its end shows whether all of it was right."""
        if not self._read:
            raise EOFError("the archive has no bytes")
        while self._packed and self.read(_PIECE):
            pass

    def _count(self, size: int) -> None:
        self._read += size
        if self._packed and self._read > _FREE + MOST_RATIO * self._raw.tell():
            raise tarfile.ReadError(f"it holds more than {MOST_RATIO} times its compressed size")


class _Header(NamedTuple):
    """The header of a member: its type, size, and name, the long one if there is one."""

    name: str
    type: bytes
    size: int
    sparse: bool


def members(file: IO[bytes], max_bytes: int) -> Iterator[TarMember]:
    """Yield the files of a tar, at most ``max_bytes`` of each, and other members as refused.

    Folders are left out. If the rest can't be read, it raises the errors of tarfile, gzip and zlib.
    """
    source = _Source(file)
    while (header := _header(source)) is not None:
        padding = -header.size % BLOCK
        refused = _refused(header, max_bytes)
        if refused is None and header.type != tarfile.DIRTYPE:
            data = source.read(header.size)
            if len(data) < header.size:
                raise EOFError(CUT)
            yield TarMember(header.name, data)
            if len(source.read(padding)) < padding:
                raise EOFError(CUT)
            continue
        try:
            source.skip(header.size + padding)
        except EOFError:
            if refused is None:
                raise
            # The row has the reason already: the archive was cut here, or the size was false.
            yield refused._replace(message=f"{refused.message}; the archive ends before")
            return
        if refused is not None:
            yield refused
    source.end()


def _refused(header: _Header, max_bytes: int) -> TarMember | None:
    """Return a member that is not read, with the reason; None for one that is, or a folder."""
    name, kind = header.name, header.type
    if kind == tarfile.DIRTYPE:
        return None
    if name.startswith("/") or ".." in name.split("/"):
        return TarMember(name, None, "unsafe_path", f"the member's path is {name[:100]!r}")
    if kind not in _PLAIN or header.sparse:
        return TarMember(name, None, "unsafe_member", "not a plain file")
    if header.size > max_bytes:
        announced = f"{header.size} bytes announced, limit {max_bytes}"
        return TarMember(name, None, "too_many_bytes", announced)
    return None


def _header(source: _Source) -> _Header | None:
    """Read up to the next member; None at the end of the archive."""
    name: str | None = None
    size: int | None = None
    sparse, taken = False, 0
    while True:
        block = source.read(BLOCK)
        if not block.strip(b"\0") and len(block) in {0, BLOCK}:
            return None
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            raise tarfile.ReadError("a member's size is negative")
        if info.type in (*_LONG, *_PAX):
            taken += BLOCK + info.size
            if taken > MOST_HEADER:
                raise tarfile.ReadError(f"more than {MOST_HEADER} bytes of headers")
            text = source.read(info.size + -info.size % BLOCK)[: info.size]
            if info.type == tarfile.GNUTYPE_LONGNAME:
                name = text.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            elif info.type in {tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE}:
                facts = _pax(text)
                name, size = facts.get("path", name), _number(facts.get("size"), size)
                sparse = sparse or any(key.startswith(_SPARSE) for key in facts)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            more = block[482]
            while more:  # blocks that list the holes
                block = source.read(BLOCK)
                if len(block) < BLOCK:
                    raise EOFError(CUT)
                more = block[504]
        return _Header(name or info.name, info.type, _stored(info, size), sparse)


def _stored(info: tarfile.TarInfo, size: int | None) -> int:
    """Return the number of bytes after a header: links, folders and devices have none."""
    if info.type in tarfile.SUPPORTED_TYPES and not info.isreg():
        return 0
    return info.size if size is None else size


def _number(text: str | None, otherwise: int | None) -> int | None:
    if text is None or not text.isdigit() or len(text) > 20:
        return otherwise
    return int(text)


def _pax(text: bytes) -> dict[str, str]:
    """Return the records of a pax header: ``LENGTH KEY=VALUE`` lines."""
    facts: dict[str, str] = {}
    at = 0
    while at < len(text):
        length, _, _ = text[at : at + 20].partition(b" ")
        if not length.isdigit() or int(length) < 5:
            break
        record = text[at + len(length) + 1 : at + int(length) - 1]
        key, _, value = record.partition(b"=")
        facts[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return facts
