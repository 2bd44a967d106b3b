"""A summary, for people, of the items found in an input and of the items left out."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from manifpt.images.listing import Listing
from manifpt.images.sources import Unit
from manifpt.images.uri_tables import END


@dataclass
class Recognised:
    """Counts of the items that were found in an input; ``str`` gives them as text."""

    tars: int = 0
    parquet: int = 0
    tables: int = 0
    rows: int = 0
    files: int = 0
    units: int = 0
    bytes: int = 0
    listing: Listing = field(default_factory=Listing)
    layouts: dict[str, None] = field(default_factory=dict)  # the origins of sources, in words
    _last_table: str = field(default="", repr=False)

    @property
    def skipped(self) -> Counter[str]:
        """The number of files and folders that are left out, by reason."""
        return self.listing.skipped

    def add(self, unit: Unit) -> None:
        """Count a unit."""
        self.units += 1
        self.bytes += unit.bytes
        self.tars += unit.kind == "tar"
        self.parquet += unit.kind == "parquet"
        self.files += len(unit.uris) if unit.kind == "files" else 0
        if unit.rows is not None:
            self.rows += unit.rows[1] - unit.rows[0] if unit.rows[1] != END else 0
            self.tables += unit.uris[0] != self._last_table
            self._last_table = unit.uris[0]

    def __str__(self) -> str:
        kinds = [
            (self.tars, "tar"),
            (self.parquet, "image Parquet"),
            (self.tables, "URI table"),
            (self.rows, "table row"),
            (self.files, "file"),
            (self.skipped["metadata"], "metadata file (no images)"),
            (self.units, "unit"),
        ]
        held = counted(kinds)
        left = counted([(n, why) for why, n in sorted(self.skipped.items()) if why != "metadata"])
        told = "; ".join([*self.layouts, held])
        return f"{told}, {self.bytes:,} bytes" + (f"; skipped: {left}" if left else "")


def counted(kinds: Iterable[tuple[int, str]]) -> str:
    """Return counts as text, without those that are zero."""
    return ", ".join(f"{count:,} x {name.replace('_', ' ')}" for count, name in kinds if count)
