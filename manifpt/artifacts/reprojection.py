"""Stored embeddings -> artifacts by another projection or manifold of their space.

Embeddings are artifacts by the projection ``none``. Decoding and embedding cost most of a pass over
images; x* can be computed again without them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from manifpt import outputs, storage
from manifpt.artifacts.artifact_stage import ArtifactStage, evaluated_classes
from manifpt.artifacts.artifacts_format import (
    ArtifactCounts,
    ArtifactsManifest,
    CombinationManifest,
)
from manifpt.artifacts.branches import (
    ArtifactBranch,
    check_unchanged,
    open_artifacts,
    read_artifacts,
    stored_columns,
)
from manifpt.artifacts.compute import publish_artifacts
from manifpt.artifacts.projection import Target, projectors_of
from manifpt.audit.sample import kept_sample
from manifpt.engine import pipeline, pools
from manifpt.engine.columns import GivenColumns
from manifpt.errors import ManifptError
from manifpt.manifold import StoredManifold
from manifpt.manifold.projector import NEAREST, Projection
from manifpt.outputs import claims


def embeddings_of(inputs: Sequence[str]) -> ArtifactBranch | None:
    """Return ``inputs`` opened as embeddings, None if they are images."""
    names = [text for text in inputs if "=" not in text or storage.is_remote(text)]
    kinds = [(outputs.read(storage.absolute(uri)) or {}).get("kind") for uri in names]
    if "artifacts" not in kinds:
        return None
    if len(inputs) > 1:
        raise ManifptError("--input: give the embeddings of one space alone, or images")
    return open_artifacts(names)[0]


def _units(embeddings: ArtifactBranch) -> list[str]:
    """Return a spec for each unit of images that was embedded: its files, chunk by chunk.

    The files of artifacts have the names and rows of the files of embeddings, so that several
    spaces can be read together.
    """
    found: dict[int, dict[int, list[str]]] = {}
    for file in embeddings.manifest["files"]:
        if file["folder"] != "quarantine":
            unit, chunk = map(int, storage.base_name(file["path"])[: -len(".parquet")].split("-"))
            uri = storage.join(embeddings.uri, file["path"])
            found.setdefault(unit, {}).setdefault(chunk, []).append(uri)
    units = [found.get(unit, {}) for unit in range(max(found) + 1)]
    return [
        json.dumps([unit.get(n, []) for n in range(max(unit, default=-1) + 1)]) for unit in units
    ]


@dataclass(frozen=True)
class _EmbeddingReader:
    """Units of files -> their rows, a chunk of the embeddings at a time; ``first`` is one file."""

    first: str

    @property
    def gives(self) -> GivenColumns:
        """The columns of that file."""
        return stored_columns([self.first])

    def __call__(self, spec: str) -> Iterator[pa.Table]:
        """Yield the rows of each chunk of a unit."""
        for uris in json.loads(spec):
            parts = [read_artifacts(uri) for uri in uris]
            table = pa.concat_tables(parts) if parts else pa.table({})
            if parts and table["artifact"].type.value_type != pa.float32():
                raise ManifptError(f"--input {uris[0]}: float16 embeddings; make them without it")
            yield table


def project_embeddings(
    embeddings: ArtifactBranch,
    output: str,
    manifold: str,
    *,
    projection: Projection = NEAREST,
    float16: bool = False,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> ArtifactsManifest | CombinationManifest:
    """Compute and publish the artifacts of embedded images; see ``compute_artifacts``."""
    output, reals = storage.absolute(output), StoredManifold.open(manifold)
    target = Target(reals.space, reals.rule, reals, projection.on(reals.manifest))
    facts, given = target.facts(), embeddings.manifest
    if given["projection"] is None or given["projection"]["kind"] != "none":
        raise ManifptError(
            f"--input {embeddings.uri}: artifacts, not embeddings; "
            "give images, or make them with --projector none"
        )
    if given["space"] != facts["space"] or given["decode"] != facts["decode"]:
        raise ManifptError(f"--manifold {manifold}: is of another space than the embeddings")
    made_of = [facts["manifold_sha256"], facts["projection"], float16]
    key = storage.digest([given["key"], *made_of])
    pool = pools.pool(demand, uses_gpu=False)
    read = [("--input", embeddings.uri), ("--manifold", reals.uri)]
    with claims.claim(output, "artifacts", key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        projectors, pool = projectors_of({target.space.name: target}, demand.search, pool)
        records = pipeline.run(
            f"project {target.space.name}",
            _units(embeddings),
            _EmbeddingReader(embeddings.first),
            partial(ArtifactStage, {"": projectors[0]}, "content", float16, embedded=True),
            output,
            pool,
        )
        classes = evaluated_classes(records)
        if classes != given["classes"]:
            raise AssertionError(f"rows are missing: {classes}, not {given['classes']}")
        names = "rows_in ok quarantined by_error inputs augment copies split_by tiles".split()
        same: Any = {name: value for name, value in given.items() if name in names}
        common: ArtifactCounts = same | {"embeddings": embeddings.uri, "classes": classes}
        check_unchanged([embeddings])
        kept = given.get("properties")
        sample = kept_sample(embeddings.uri, kept) if kept else None
        return publish_artifacts(claim, {"": facts}, records, common, sample)
