"""The units of inputs, listed one by one, and the sums of their content."""

from collections import Counter
from collections.abc import Iterator, Sequence

from manifpt.errors import public
from manifpt.images.sources import AS_FOUND, ContentKey, Input, InputsCard, Reading, Selection, Unit
from manifpt.images.units import units


class Inventory:
    """Lists inputs in one pass; its facts about them are complete when the pass has ended."""

    def __init__(
        self,
        inputs: Sequence[str],
        selection: Selection = Selection(),
        reading: Reading = AS_FOUND,
    ) -> None:
        self.inputs, self.selection, self.reading = inputs, selection, reading
        parsed = [Input.parse(text) for text in inputs]
        self.given = [public(f"{i.source}={i.uri}" if i.source else i.uri) for i in parsed]
        self._begin()

    def _begin(self) -> None:
        self._key = ContentKey()
        self._kinds: Counter[str] = Counter()
        self._sources: set[str] = set()
        self._bytes = 0
        self._skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Unit]:
        self._begin()
        skipped = self._skipped
        for unit in units(self.inputs, self.selection, reading=self.reading, skipped=skipped):
            self._key.add(unit)
            self._kinds[unit.kind] += 1
            self._bytes += unit.bytes
            if unit.source is not None:
                self._sources.add(unit.source)
            yield unit

    def key(self) -> str:
        """List the inputs once more, and return their ``sources.content_key``."""
        for _ in self:
            pass
        return self._key.hexdigest()

    def describe(self) -> InputsCard:
        """Describe the inputs, as ``sources.describe`` does, with the counts of skipped items."""
        return {
            "given": self.given,
            "units": self._kinds.total(),
            "bytes": self._bytes,
            "kinds": dict(sorted(self._kinds.items())),
            "sources": sorted(self._sources),
            "content_key": self._key.hexdigest(),
            "skipped": dict(sorted(self._skipped.items())),
        }
