"""Metadata that lie beside a tar of images, in a file of their own."""

from typing import Any

import pyarrow.parquet as pq

from manifpt import storage
from manifpt.images.sources import PARQUET, Unit, stem


class Beside:
    """The metadata that img2dataset writes beside a tar, as Parquet, by the samples' keys."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.rows: dict[str, dict[str, Any]] | None = None

    def of(self, key: str) -> dict[str, Any]:
        """Return what is known of a sample; the file is read when first asked for."""
        if self.rows is None:
            self.rows = self._read() if self.unit.reading.columns else {}
        return self.rows.get(key.rpartition("/")[2], {})

    def _read(self) -> dict[str, dict[str, Any]]:
        uri = stem(self.unit.uris[0]) + PARQUET[0]
        if not storage.exists(uri):
            return {}
        with storage.reading(uri) as file:
            parquet = pq.ParquetFile(file)
            names = parquet.schema_arrow.names
            columns = [name for name in ("key", *self.unit.reading.columns) if name in names]
            if "key" not in columns:
                return {}
            rows = parquet.read(columns=list(dict.fromkeys(columns))).to_pylist()
        return {str(row["key"]): row for row in rows}
