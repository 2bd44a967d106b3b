"""A finished output of ``attribute`` as the viewer reads it: rows, groups, copies, quarantine."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import and_
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from manifpt import outputs, storage
from manifpt.attribution.crawl.attribute import KIND, SUMMARY
from manifpt.attribution.crawl.crawl_format import (
    AttributionRow,
    AttributionsManifest,
    AttributionSummary,
    CopyRow,
    GroupRow,
)
from manifpt.attribution.crawl.duplicates import FOLDER as DUPLICATES
from manifpt.attribution.crawl.grouping import FOLDER, GROUPS
from manifpt.errors import public
from manifpt.images.ids import image_id
from manifpt.manifold.manifold_format import ManifoldManifest
from manifpt.report.page_provenance import attributor_of, readable
from manifpt.report.rows import files_of_folder
from manifpt.viewer.filters import FOLDER_OF_ID, ORDERS, Filters
from manifpt.viewer.scan import AddressError, Query, RowFiles

# The most images of a cluster that are shown.
MOST_ALIKE = 10_000


class CopyCluster(NamedTuple):
    """The first image of a cluster and its copies: ids, and whether there are more of them."""

    first: str
    ids: list[str]
    cut: bool


class Real(NamedTuple):
    """The nearest real of an image: its URI, and the inputs of its manifold."""

    uri: str
    inputs: Sequence[str]


@dataclass(frozen=True)
class CrawlOutput:
    """An output of ``attribute``; ``model`` and ``manifolds`` say where these lie now."""

    uri: str
    manifest: AttributionsManifest
    summary: AttributionSummary
    model: str | None = None
    manifolds: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, uri: str, model: str | None = None, manifolds: Sequence[str] = ()
    ) -> "CrawlOutput":
        """Open a finished output of ``attribute``; any other is an error."""
        manifest = outputs.require(uri, KIND, "OUTPUT")
        place = storage.absolute(uri)
        summary = storage.read_json(storage.join(place, SUMMARY))
        return cls(place, manifest, summary, model, tuple(manifolds))

    def _files(self, folder: str) -> RowFiles:
        return RowFiles(self.uri, files_of_folder(self.manifest, folder))

    @cached_property
    def attributions(self) -> RowFiles:
        """The rows of images that were attributed."""
        return self._files("attributions")

    @cached_property
    def quarantine(self) -> RowFiles:
        """The rows of images that could not be read."""
        return self._files("quarantine")

    @cached_property
    def duplicates(self) -> RowFiles:
        """The rows of images that are copies of others."""
        return self._files(DUPLICATES)

    @cached_property
    def groups(self) -> RowFiles:
        """The rows of groups."""
        return self._files(GROUPS)

    @property
    def group_by(self) -> str | None:
        """The column of groups, or FOLDER_OF_ID; None if rows do not tell their group."""
        by = self.summary.get("group_by")
        if by in self.attributions.schema.names:
            return by
        return FOLDER_OF_ID if by == FOLDER else None

    def group_of(self, row: AttributionRow) -> str | None:
        """Return the group of a row of attributions."""
        if self.group_by == FOLDER_OF_ID:
            return row["id"].rpartition("/")[0] or "."
        group: Any = row.get(self.group_by) if self.group_by else None
        return group

    def query(self, filters: Filters) -> Query:
        """Return the query of the rows that filters choose, in their order."""
        found = filters.conditions(self.group_by)
        if filters.cluster:
            alike = pc.field("id").isin(pa.array(self.cluster(filters.cluster).ids, pa.string()))
            found["id"] = found["id"] & alike if "id" in found else alike
        _, column, descending = ORDERS[filters.order]
        where = reduce(and_, found.values()) if found else None
        return Query(where, tuple(found), column, descending)

    def find(self, id: str) -> AttributionRow:
        """Return the row of the image with an id."""
        row: AttributionRow | None = first_with(self.attributions, "id", id)
        if row is None:
            raise AddressError(
                f"id={id[:200]}: no attributed image has it; search for a part of it"
            )
        return row

    def copy_of(self, id: str) -> CopyRow | None:
        """Return the row of an image in the table of copies; None if it is first of its kind."""
        return first_with(self.duplicates, "id", id)

    def cluster(self, id: str) -> CopyCluster:
        """Return the images that are copies of the same first image as the image with an id."""
        row = self.copy_of(id)
        first = id if row is None else row["near_duplicate_of"] or row["duplicate_of"] or id
        names = ("duplicate_of", "near_duplicate_of")
        if not self.duplicates.paths:
            return CopyCluster(first, [first], cut=False)
        where = (pc.field(names[0]) == first) | (pc.field(names[1]) == first)
        page = self.duplicates.page(Query(where, names), most=MOST_ALIKE)
        copies = self.duplicates.rows(page.positions, ["id"])
        return CopyCluster(first, [first, *(copy["id"] for copy in copies)], page.after is not None)

    def group(self, name: str) -> GroupRow | None:
        """Return the row of a group; None if there is none of this name."""
        return first_with(self.groups, "group", name)

    def explain_command(self, row: AttributionRow) -> str:
        """Return the command that explains the verdict on an image."""
        model = self.model or self.summary["model"]
        words = ["manifpt", "explain", row["uri"], "--model", model]
        if self.manifolds:
            words += ["--manifold", *self.manifolds]
        return public(shlex.join([*words, "--output", "why.html"]))

    @cached_property
    def _manifold(self) -> tuple[str, ManifoldManifest] | None:
        """The place and the manifest of the manifold whose reals rows name; None if it is gone."""
        model = attributor_of(self.uri, self.summary, self.model)
        places = self.manifolds or tuple(self.summary.get("manifolds", ()))
        if model is None or not places:
            return None
        content = next(b["manifold_sha256"] for b in model.manifest["branches"] if b["manifold"])
        manifest: ManifoldManifest | None = readable(places[0], "manifold")
        if manifest is None or manifest["content_sha256"] != content:
            return None
        return storage.absolute(places[0]), manifest

    @cached_property
    def _reals(self) -> RowFiles | None:
        """The rows of the manifold's reals."""
        if self._manifold is None:
            return None
        place, manifest = self._manifold
        shards = manifest["shards"]
        return RowFiles(place, [one["rows"] | {"rows": one["reals"]} for one in shards])

    def real(self, id: str | None) -> Real | None:
        """Return the nearest real that a row names; None if its manifold is gone."""
        if id is None or self._reals is None or self._manifold is None:
            return None
        row = first_with(self._reals, "id", id) or first_with(self._reals, "id", image_id(id))
        described = self._manifold[1].get("inputs", {})
        return None if row is None else Real(str(row["uri"]), described.get("given", ()))


def first_with(files: RowFiles, column: str, value: str) -> Any:
    """Return the first row whose column has a value; None if there is none.

    The caller declares its type.
    """
    if not files.paths:
        return None
    page = files.page(Query(pc.field(column) == value, (column,)), most=1)
    return files.rows(page.positions)[0] if page.positions else None
