"""Metadata of the images in a tar, from a separate file beside it."""

from manifpt import storage
from manifpt.images import parquet
from manifpt.images.container import BrokenError
from manifpt.images.sources import PARQUET, Unit, stem

# Characters of the metadata beside one tar; if there are more, none are read.
MOST_BESIDE = 2**26


class Beside:
    """The metadata that img2dataset writes beside a tar, as Parquet, by the samples' keys."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.rows: dict[str, dict[str, str | None]] | None = None

    def of(self, key: str) -> dict[str, str | None]:
        """Return the metadata of a sample; the file is read at first use.

        A file that can't be read, or is too large, gives no metadata; the images are read without
        it.
        """
        if self.rows is None:
            self.rows = self._read() if self._wanted() else {}
        return self.rows.get(key.rpartition("/")[2], {})

    def _wanted(self) -> list[str]:
        """Return the columns that the user has named."""
        reading = self.unit.reading
        given = (*reading.columns, reading.source_column, reading.split_column)
        return list(dict.fromkeys(name for name in given if name))

    def _read(self) -> dict[str, dict[str, str | None]]:
        uri = stem(self.unit.uris[0]) + PARQUET[0]
        if not storage.exists(uri):
            return {}
        try:
            return self._found(uri)
        except BrokenError:
            return {}

    def _found(self, uri: str) -> dict[str, dict[str, str | None]]:
        found, size = dict[str, dict[str, str | None]](), 0
        with parquet.opened(uri) as file:
            wanted = dict.fromkeys(("key", *self._wanted()))
            if "key" not in file.names:
                return {}
            for row in file.rows([name for name in wanted if name in file.names]):
                size += sum(len(text or "") for text in row.texts.values())
                if size > MOST_BESIDE:
                    return {}
                found[str(row.texts["key"])] = row.texts
        return found
