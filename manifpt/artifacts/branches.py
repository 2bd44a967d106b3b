"""Readers of stored artifacts: those of one space, or of the same images in several spaces."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from manifpt import outputs, storage
from manifpt.artifacts.artifact_stage import ARTIFACTS, EVALUATED
from manifpt.artifacts.artifacts_format import ArtifactsManifest, SplitCounts
from manifpt.artifacts.compute import COMBINATION, ArtifactRecipe, compute_artifacts
from manifpt.engine import pools
from manifpt.engine.columns import ColumnTypes, GivenColumns
from manifpt.errors import ManifptError
from manifpt.images.sources import AS_FOUND
from manifpt.outputs import claims

LOOKS = "perceptual_hash"
# The columns of each file of artifacts; those of earlier versions have no LOOKS.
STORED: ColumnTypes = ARTIFACTS | {"artifact": None}
REMEDY = "make the artifacts again with compute_artifacts"
EVIDENCE = ("neighbor_id", "distance", "percentile", "in_manifold")


class ArtifactBranch(NamedTuple):
    """Finished artifacts in one space: its name among several, their folder and manifest."""

    name: str
    uri: str
    manifest: ArtifactsManifest

    def files(self, split: str) -> list[str]:
        """Return the paths of the Parquet files of a split."""
        return [f["path"] for f in self.manifest["files"] if f["folder"] == split]

    @property
    def first(self) -> str:
        """The URI of the first file of artifacts, for a look at its columns."""
        path = next(path for split in EVALUATED for path in self.files(split))
        return storage.join(self.uri, path)


def open_artifacts(uris: Sequence[str]) -> list[ArtifactBranch]:
    """Open artifacts; a folder of several spaces stands for the artifacts of all of them.

    Several must be of the same images, in the same order. Spaces with tiles come first.
    """
    found: list[ArtifactBranch] = []
    for uri in map(storage.absolute, uris):
        manifest = outputs.read(uri) or {}
        members = manifest.get("members") if manifest.get("kind") == COMBINATION else None
        for name in members or [""]:
            folder = storage.join(uri, name) if name else uri
            one: ArtifactsManifest = outputs.require(folder, "artifacts", "--input")
            found.append(ArtifactBranch(name or one["space"]["name"], folder, one))
    if len({branch.name for branch in found}) < len(found):
        found = [b._replace(name=f"{n}-{b.name}") for n, b in enumerate(found, start=1)]
    found.sort(key=lambda branch: not branch.manifest["decode"].get("tiles"))
    layouts = [[branch.files(split) for split in EVALUATED] for branch in found]
    if any(layout != layouts[0] for layout in layouts):
        raise ManifptError("--input: these artifacts are not of the same images; make them at once")
    return found


def artifacts_of(
    inputs: Sequence[str],
    output: str,
    recipe: ArtifactRecipe,
    *,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> list[ArtifactBranch]:
    """Return ``inputs`` opened as artifacts, or compute their artifacts in ``output``.

    ``recipe`` says how they are made of images.
    """
    if are_artifacts(inputs):
        if recipe.augmentation is not None:
            raise ManifptError("--degrade: these artifacts are made; make them with --augment")
        if recipe.split_by is not None:
            raise ManifptError(
                f"--split-by {recipe.split_by}: these artifacts are split; give it to "
                "compute_artifacts"
            )
        if recipe.labels != AS_FOUND:
            option = "source" if recipe.labels.source_column else "split"
            raise ManifptError(f"--{option}-column: these artifacts are made; leave it out")
        return open_artifacts(inputs)
    if not recipe.manifolds and not recipe.plain:
        raise ManifptError("--manifold: images need a manifold, or --space image to do without")
    compute_artifacts(inputs, output, recipe, demand=demand, terms=terms)
    return open_artifacts([output])


def check_unchanged(branches: Sequence[ArtifactBranch]) -> None:
    """Raise if artifacts are no longer those that were opened: another run has replaced them."""
    for branch in branches:
        if outputs.read(branch.uri) != branch.manifest:
            raise ManifptError(f"{branch.uri}: was replaced while it was read; start again")


def are_artifacts(inputs: Sequence[str]) -> bool:
    """Tell whether inputs are finished outputs, and not images."""
    named = [not storage.is_remote(text) and "=" in text for text in inputs]
    return not any(named) and all(outputs.read(storage.absolute(uri)) for uri in inputs)


def read_artifacts(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Return one Parquet file of artifacts, checked against the table's schema.

    A file that was written before there were perceptual hashes gets a column of nulls for them, or
    no such column if ``columns`` names it.
    """
    table = storage.read_parquet(uri, columns)
    if columns is None and LOOKS not in table.column_names:
        table = table.append_column(LOOKS, pa.nulls(table.num_rows, ARTIFACTS[LOOKS]))
    asked = set(columns or STORED) - {LOOKS}
    expected = {n: kind for n, kind in STORED.items() if n in asked | {*table.column_names}}
    _given(table.schema, uri).check("artifacts", expected)
    return table


def stored_columns(uris: Sequence[str]) -> GivenColumns:
    """Return the columns that ``read_branches`` gives of files as these."""
    schemas = [storage.parquet_schema(uri) for uri in uris]
    types = _given(schemas[0], uris[0]).columns
    artifacts = {
        artifact_column(number): schema.field("artifact").type
        for number, schema in enumerate(schemas)
        if "artifact" in schema.names
    }
    return GivenColumns({LOOKS: ARTIFACTS[LOOKS], **types, **artifacts}, " and ".join(uris), REMEDY)


def _given(schema: pa.Schema, uri: str) -> GivenColumns:
    """Return the columns of a file of artifacts."""
    return GivenColumns(dict(zip(schema.names, schema.types, strict=True)), uri, REMEDY)


def row_counts(manifest: ArtifactsManifest) -> SplitCounts:
    """Return the number of rows of artifacts by split and source: tiles, where images have some."""
    return manifest.get("tiles", manifest["classes"])


def of_classes(table: pa.Table, classes: Sequence[str]) -> pa.Table:
    """Return the rows whose source is one of ``classes``."""
    return table.filter(pc.is_in(table["source"], pa.array(classes, pa.string())))


def artifact_column(number: int) -> str:
    """Return the name of a branch's column of artifacts, where they are read together."""
    return f"artifact_{number}" if number else "artifact"


def read_branches(uris: Sequence[str], columns: list[str] | None = None) -> pa.Table:
    """Return one file's rows with their artifacts in each space, see ``artifact_column``.

    ``uris`` are the same images' files in each space. Where all columns are read, neighbours are
    those of the first space with a manifold, and an image is in it if it is in any.
    """
    first = read_artifacts(uris[0], columns)
    for number, uri in enumerate(uris[1:], start=1):
        table = read_artifacts(uri, None if columns is None else ["id", "artifact"])
        if not table["id"].equals(first["id"]):
            raise ManifptError(f"{uri}: other images than {uris[0]}; make the artifacts at once")
        first = first.append_column(artifact_column(number), table["artifact"])
        for name in EVIDENCE if columns is None else ():
            both = pc.or_ if name == "in_manifold" else pc.coalesce
            place = first.column_names.index(name)
            first = first.set_column(place, name, both(first[name], table[name]))
    return first
