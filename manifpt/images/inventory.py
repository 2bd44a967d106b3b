"""The units of inputs as they are listed, one by one, and what they hold together."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from manifpt.errors import public
from manifpt.images.sources import Input, Selection, Unit, plan


class Inventory:
    """Lists inputs in one pass; what it tells of them is complete when that has ended."""

    def __init__(self, inputs: Sequence[str], selection: Selection = Selection()) -> None:
        self.inputs, self.selection = inputs, selection
        parsed = [Input.parse(text) for text in inputs]
        self.given = [public(f"{i.source}={i.uri}" if i.source else i.uri) for i in parsed]
        self._begin()

    def _begin(self) -> None:
        self._hash = hashlib.sha256(b"[")
        self._kinds: Counter[str] = Counter()
        self._sources: set[str] = set()
        self._bytes = 0

    def __iter__(self) -> Iterator[Unit]:
        self._begin()
        for unit in plan(self.inputs, self.selection):
            facts = [unit.kind, unit.ids, unit.source, unit.split, unit.bytes]
            self._hash.update((", " if self._kinds else "").encode() + json.dumps(facts).encode())
            self._kinds[unit.kind] += 1
            self._bytes += unit.bytes
            if unit.source is not None:
                self._sources.add(unit.source)
            yield unit

    @property
    def content_key(self) -> str:
        """The same as ``sources.content_key`` of all units."""
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()

    def key(self) -> str:
        """List the inputs once more, and return their ``content_key``."""
        for _ in self:
            pass
        return self.content_key

    def describe(self) -> dict[str, Any]:
        """Say what the inputs are, as ``sources.describe`` does."""
        return {
            "given": self.given,
            "units": self._kinds.total(),
            "bytes": self._bytes,
            "kinds": dict(sorted(self._kinds.items())),
            "sources": sorted(self._sources),
            "content_key": self.content_key,
        }
