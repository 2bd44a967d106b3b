"""Parquet files of images, of URIs, or of metadata: their columns, and their rows.

Pages, dictionaries and footers of a few bytes can grow to gigabytes in Arrow's C++, which has no
limit. So the child process of ``reader`` parses them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from manifpt.errors import ManifptError
from manifpt.images import container
from manifpt.images.container import BrokenError
from manifpt.images.reader import Reader
from manifpt.images.sources import Reading

IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "image_data", "jpg", "jpeg", "png", "webp", "img")


class ParquetRow(NamedTuple):
    """A row: its image, or in ``refused`` the size of one that is too large, and other columns."""

    data: bytes | None
    refused: int
    texts: dict[str, str | None]


class Parquet:
    """An open file: ``names`` of all columns and of ``binary`` ones, and the ``count`` of rows.

    ``labels`` are the classes' names of each column of class labels.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._reader = Reader(file, "parquet")
        facts = self._reader.facts
        self.names: list[str] = facts["names"]
        self.binary: list[str] = facts["binary"]
        self.labels: dict[str, list[str]] = facts["labels"]
        self.count: int = facts["rows"]

    def rows(
        self,
        texts: Sequence[str],
        *,
        strings: Sequence[str] = (),
        image: str | None = None,
        most: int = 0,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[ParquetRow]:
        """Yield the rows from ``start`` to ``stop``.

        Each row has the columns ``texts``, and its image from the column ``image``, if that has at
        most ``most`` bytes. A value that is no string becomes JSON, or None in the columns
        ``strings``. Raises BrokenError if the rest can't be read.
        """
        stop = self.count if stop is None else stop
        fields = {"texts": texts, "strings": strings, "image": image}
        for row in self._reader.rows(most, rows=(start, stop), **fields):
            start += 1
            named = dict(zip(texts, row.rest, strict=True))
            yield ParquetRow(row.data, row.refused, named)
        if start < stop:
            raise BrokenError(f"it ends before row {start}")

    def close(self) -> None:
        """Close it; the file stays open."""
        self._reader.close()


@contextlib.contextmanager
def opened(uri: str) -> Iterator[Parquet]:
    """Open a file; raises BrokenError if it can't be read, ManifptError if the storage fails."""
    with container.opened_container(uri) as file, contextlib.closing(Parquet(file)) as found:
        yield found


def image_column(parquet: Parquet, reading: Reading, uri: str) -> str:
    """Find the column of image bytes, plain or in Hugging Face's struct; raise if there is none."""
    name = found_image_column(parquet, reading)
    if name is None:
        shown = ", ".join(parquet.names)[:200]
        raise ManifptError(
            f"{uri}: no column of image bytes among {shown}; name it by --image-column, or one of "
            "URIs by --uri-column"
        )
    return name


def found_image_column(parquet: Parquet, reading: Reading) -> str | None:
    """Return the image column: the given one, one of a usual name, or the only binary one."""
    binary = parquet.binary
    if reading.image_column is not None:
        return reading.image_column if reading.image_column in binary else None
    usual = next((name for name in IMAGE_COLUMNS if name in binary), None)
    return binary[0] if usual is None and len(binary) == 1 else usual
