"""The check of artifacts: random rows are computed again by brute force.

Images are read again from their source, and embedded; ``brute_force`` computes their artifacts
without the engine. The reals that were found nearest are read again from their own source and
embedded, too. The differences go into a certificate.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import __version__, outputs, storage
from manifpt.artifacts.artifact_stage import EVALUATED
from manifpt.artifacts.artifacts_format import (
    ArtifactsManifest,
    AugmentCard,
    Certificate,
    Mismatch,
)
from manifpt.artifacts.branches import read_artifacts
from manifpt.artifacts.brute_force import (
    WHITENED_TOLERANCE,
    ArtifactRow,
    Checked,
    differences,
    expected_artifact,
)
from manifpt.errors import DamageError, ManifptError
from manifpt.images import DecodeRule, Selection, plan, read_unit
from manifpt.images.degraded_copies import Augmentation, original_id
from manifpt.images.ids import image_id, tile_id
from manifpt.images.read import pixels_of
from manifpt.images.sources import labels_of
from manifpt.images.stacks import sizes_beside
from manifpt.manifold import StoredManifold
from manifpt.manifold.embed import points_of
from manifpt.spaces import Space
from manifpt.storage import tensors

BLOCK_BYTES = 256 * 2**20
CERTIFICATE = "certificate.json"


def _chosen(
    folder: str, manifest: ArtifactsManifest, rows: int, seed: int, *, tiled: bool
) -> list[ArtifactRow]:
    """Return random rows of an artifacts folder; ``tiled`` tells whether its reals have tiles."""
    counts = [file["rows"] for file in manifest["files"] if file["folder"] in EVALUATED]
    files = [file for file in manifest["files"] if file["folder"] in EVALUATED]
    chosen = np.random.default_rng(seed).permutation(sum(counts))[:rows]
    edges = np.cumsum([0, *counts])
    out: list[ArtifactRow] = []
    for n, file in enumerate(files):
        mine = np.sort(chosen[(chosen >= edges[n]) & (chosen < edges[n + 1])]) - edges[n]
        if not len(mine):
            continue
        uri = storage.join(folder, file["path"])
        if storage.sha256(uri) != file["sha256"]:
            raise DamageError(f"{uri}: differs from its manifest's hash; compute it again")
        table = read_artifacts(uri).take(mine)
        kind = str(table["artifact"].type.value_type)
        artifacts = tensors.from_column(table["artifact"])
        rest = table.drop_columns(["artifact"]).to_pylist()
        out += [_row(*one, kind, tiled=tiled) for one in zip(rest, artifacts, strict=True)]
    return out


def _row(row: Any, artifact: np.ndarray, kind: str, *, tiled: bool) -> ArtifactRow:
    return ArtifactRow(
        row["id"],
        tile_id(row["id"], row.get("tile", 0) if tiled else 0),
        row.get("tile_sha256", row["pixel_sha256"]),
        row["neighbor_id"],
        row["distance"],
        artifact,
        kind,
    )


def _embedded(
    inputs: Sequence[str],
    wanted: set[str],
    selection: Selection,
    rule: DecodeRule,
    space: Space,
    augment: AugmentCard | None = None,
    **planned: Any,
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield id, pixel hash and vector of the images of those ids, read from their source.

    The ids may be those of tiles, see ``ids.tile_id``, and among them those of degraded copies,
    made again by the card ``augment``. All tiles of an image are yielded.
    """
    images = set(map(image_id, wanted))
    read = list(images | {original_id(name) for name in images} if augment else images)
    # The random degradation of a copy depends on the pixels of the first decoding.
    first = rule
    if augment:
        first = replace(rule, size=augment["size"], tiles=augment.get("tiles", 0))
    others = sizes_beside(first, [rule])
    for unit in plan(inputs, selection, **planned):
        for table in read_unit(unit, first, selection, other_sizes=others):
            keep = np.isin(table["id"].to_pylist(), read)
            some = table.filter(keep & np.array(table["error"].is_null()))
            if augment:
                again = Augmentation.from_card(augment).copies_again(some, images, rule.filter)
                some = pa.concat_tables([some, again.select(some.column_names)])
            if some.num_rows:
                some = points_of(some, rule)
                vectors = space.embed(pixels_of(some)).reshape(some.num_rows, -1)
                hashes = some["pixel_sha256"].to_pylist()
                yield from zip(some["id"].to_pylist(), hashes, vectors, strict=True)


def _check_rows(
    artifacts: ArtifactsManifest, manifold: StoredManifold, rows: Sequence[ArtifactRow]
) -> tuple[list[Mismatch], Checked]:
    """Compute rows again from their images; return the differences, and the rows' neighbours."""
    card = artifacts["projection"]
    assert card is not None  # there is a manifold
    inputs, space = artifacts["inputs"], manifold.space
    read = _embedded(
        inputs["given"],
        {row.point for row in rows},
        Selection(EVALUATED, None),
        manifold.rule,
        space,
        artifacts.get("augment"),
        labelled=True,
        reading=labels_of(inputs),
    )
    found = {name: (sha, vector) for name, sha, vector in read}
    wrong: list[Mismatch] = []
    kept = []
    for row in rows:
        sha, _ = found.get(row.point, (None, None))
        if sha != row.sha256:
            what = "its image is gone" if sha is None else "its pixels are others"
            wrong.append({"id": row.id, "what": what})
        else:
            kept.append(row)
    queries = np.stack([found[row.point][1] for row in kept]) if kept else np.empty((0, 1))
    rounding = max(space.tolerance, WHITENED_TOLERANCE if manifold.metric.whitening else 0.0)
    checked = Checked(kept, queries, card["neighbours"], manifold.metric, rounding)
    for block in manifold.blocks(BLOCK_BYTES):
        checked.meet(block.ids, block.pixel_sha256, block.vectors)
    checked.settle()
    for n, row in enumerate(kept):
        query, reals = queries[n].astype(np.float64), checked.vector[n]
        artifact, most = expected_artifact(query, reals, card, manifold)
        distance, tolerance = checked.distance[n, 0], checked.tolerance(n)
        off = (rounding if card.get("whitened") else space.tolerance) * most
        found_wrong = differences(row, distance, tolerance, checked.id[n, 0], artifact, off)
        wrong += [{"id": row.id, "what": what} for what in found_wrong]
    return wrong, checked


def _check_reals(manifold: StoredManifold, checked: Checked) -> list[Mismatch]:
    """Embed the neighbours again from their own images; return those whose vector differs."""
    wanted = {str(name) for name in checked.id.ravel()}
    stored = {
        str(name): v
        for line, vs in zip(checked.id, checked.vector, strict=True)
        for name, v in zip(line, vs, strict=True)
    }
    selection = Selection(("manifold",), ("real",))
    sources = [manifold.manifest["inputs"], *(a["inputs"] for a in manifold.manifest["appended"])]
    again: dict[str, np.ndarray] = {}
    for inputs in sources:
        read = _embedded(
            inputs["given"],
            wanted,
            selection,
            manifold.rule,
            manifold.space,
            source="real",
            reading=labels_of(inputs),
        )
        for name, _, vector in read:
            again.setdefault(name, vector)
    wrong: list[Mismatch] = []
    for name, vector in stored.items():
        if name not in again:
            wrong.append({"id": name, "what": "the real's image is gone"})
        elif np.abs(again[name] - vector).max() > manifold.space.tolerance * np.abs(vector).max():
            wrong.append({"id": name, "what": "the real's vector is not that of its image"})
    return wrong


def verify(manifold_uri: str, artifacts_uri: str, rows: int, seed: int = 0) -> Certificate:
    """Check random rows of artifacts; write the certificate beside them and return it."""
    started = time.monotonic()
    artifacts_uri = storage.absolute(artifacts_uri)
    artifacts: ArtifactsManifest = outputs.require(artifacts_uri, "artifacts", "artifacts")
    manifold = StoredManifold.open(manifold_uri)
    if artifacts["manifold_sha256"] is None:
        raise ManifptError(f"{artifacts_uri}: images themselves; there is no manifold to verify")
    wrong: list[Mismatch] = []
    if artifacts["manifold_sha256"] != manifold.sha256:
        wrong.append({"id": None, "what": "the artifacts were made with another manifold"})
    worst, checked_rows, checked_reals = 0.0, 0, 0
    try:
        chosen = _chosen(artifacts_uri, artifacts, rows, seed, tiled=manifold.rule.tiles > 0)
        found, checked = _check_rows(artifacts, manifold, chosen)
        wrong += found + _check_reals(manifold, checked)
        checked_rows, checked_reals = len(chosen), len({*checked.id.ravel()})
        errors = [
            abs(r.distance - d) for r, d in zip(checked.rows, checked.distance[:, 0], strict=True)
        ]
        worst = float(max(errors, default=0.0))
    except DamageError as error:
        wrong.append({"id": None, "what": str(error)})
    certificate: Certificate = {
        "rows_checked": checked_rows,
        "reals_checked": checked_reals,
        "mismatches": len(wrong),
        "what": wrong,
        "largest_distance_error": worst,
        "seed": seed,
        "manifold": manifold.uri,
        "manifold_sha256": manifold.sha256,
        "shards": {
            s["vectors"]["path"]: s["vectors"]["sha256"] for s in manifold.manifest["shards"]
        },
        "artifacts": artifacts_uri,
        "artifacts_key": artifacts["key"],
        "seconds": round(time.monotonic() - started, 1),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "manifpt": __version__,
    }
    storage.write_json(storage.join(artifacts_uri, CERTIFICATE), certificate)
    return certificate
