"""A manifold that grows by new reals, and whose small shards are merged."""

import json
from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa

from manifpt import outputs, storage
from manifpt.engine import pipeline, pools
from manifpt.errors import ManifptError
from manifpt.images import plan
from manifpt.images.places import input_places
from manifpt.images.sources import AS_FOUND, MANIFOLD_REALS, Reading, content_key, describe
from manifpt.manifold.build import content_sha256, no_reals
from manifpt.manifold.embed import embed_units, remove_shard, write_array, write_rows, write_shards
from manifpt.manifold.manifold_format import AppendedReals, ManifoldManifest, ShardEntry
from manifpt.manifold.prepare import measure_held_out, write_all_keys
from manifpt.manifold.search import SearchPlan
from manifpt.manifold.shard import ROWS
from manifpt.manifold.stored import StoredManifold
from manifpt.outputs import claims
from manifpt.outputs.formats import ChunkRecord, PartEntry
from manifpt.spaces.space import LEARNED

ATTEMPTS = 20


def _update(
    manifold: StoredManifold, change: Callable[[ManifoldManifest], ManifoldManifest | None]
) -> ManifoldManifest:
    """Publish the manifest changed by ``change``; try again if another job did so meanwhile.

    ``change`` gets the present manifest and returns the new one, or None if nothing changes.
    """
    uri = storage.join(manifold.uri, outputs.MANIFEST)
    for _ in range(ATTEMPTS):
        data, token = storage.read_versioned(uri)
        changed = change(json.loads(data))
        if changed is None:
            found: ManifoldManifest = json.loads(data)
            return found
        changed["content_sha256"] = content_sha256(changed)
        if storage.replace(uri, storage.json_bytes(changed), token):
            return changed
    raise ManifptError(f"{uri}: changed {ATTEMPTS} times while this job worked; start it again")


def append_to_manifold(
    inputs: Sequence[str],
    output: str,
    *,
    labels: Reading = AS_FOUND,
    demand: pools.Demand = pools.ANY,
) -> ManifoldManifest:
    """Add the reals of ``inputs`` as new shards; return the manifest.

    The old shards are neither read again nor changed, except for the distances of held-out reals; a
    covariance stays that of the first reals. Reals that the manifold has already are counted and
    left out; the same call again does nothing.
    """
    manifold = StoredManifold.open(output)
    units = plan(inputs, MANIFOLD_REALS, source="real", reading=labels)
    key = storage.digest([content_key(units)])
    if key in [done["key"] for done in manifold.manifest["appended"]]:
        return manifold.manifest
    if manifold.manifest["search"]["index"] is not None:
        raise ManifptError(
            f"{output} has the index {manifold.manifest['search']['index']['plan']}, "
            "which would miss the new reals; build the manifold again"
        )
    pool = pools.pool(demand, uses_gpu=manifold.space.name in LEARNED)
    scratch = storage.join(manifold.uri, f"_append-{key[:12]}")
    apart = input_places(inputs, manifold.uri)
    claims.check_apart(manifold.uri, apart)
    with claims.claim(scratch, "append", key, apart=apart) as claim:
        shards = len(manifold.manifest["shards"])
        records = embed_units(units, [manifold.space], [manifold.rule], shards, scratch, pool)
        counts = pipeline.totals(records)
        if counts["ok"] == 0:
            claim.abandon()
            raise no_reals(counts)
        done: AppendedReals = {"key": key, "inputs": describe(inputs, units, labels), **counts}
        manifest = _update(manifold, partial(_appended, manifold, records, scratch, done, pool))
        claim.abandon()
        return manifest


def _appended(
    manifold: StoredManifold,
    records: Sequence[ChunkRecord],
    scratch: str,
    done: AppendedReals,
    pool: pools.Pool,
    manifest: ManifoldManifest,
) -> ManifoldManifest | None:
    """Return a manifest with the embedded reals as new shards; None if they are in it already."""
    key = done["key"]
    if key in [earlier["key"] for earlier in manifest["appended"]]:
        return None
    known = [storage.join(manifold.uri, s["rows"]["path"]) for s in manifest["shards"]]
    shards, name = len(manifold.manifest["shards"]), manifold.space.name
    prefix = f"shard-{key[:12]}"
    new = write_shards(manifold.uri, scratch, records, shards, pool, name, prefix, known)
    nonempty = [entry for entry in new if entry["reals"]]
    draft: ManifoldManifest = {**manifest, "shards": [*manifest["shards"], *nonempty]}
    draft["reals"] += sum(entry["reals"] for entry in nonempty)
    duplicates = sum(entry["duplicates"] for entry in new)
    draft["appended"] = [*manifest["appended"], {**done, "duplicates": duplicates}]
    moved = _moved(records, scratch, manifold.uri, key)
    draft["quarantine"] = [*manifest["quarantine"], *moved]
    last = len(draft["shards"])
    write_all_keys(draft, manifold.uri, pool, range(len(manifest["shards"]), last))
    measure_held_out(draft, manifold.uri, pool)
    return draft


def _moved(records: Sequence[ChunkRecord], scratch: str, output: str, key: str) -> list[PartEntry]:
    """Copy the quarantine of an append to the manifold's; return its parts."""
    moved: list[PartEntry] = []
    for part in pipeline.parts(records):
        path = f"quarantine/{key[:8]}-{storage.base_name(part['path'])}"
        data = storage.read_bytes(storage.join(scratch, part["path"]))
        written = storage.write_bytes(storage.join(output, path), data)
        moved.append({**part, "path": path, **written})
    return moved


def merge_groups(sizes: Sequence[int], target: int) -> list[list[int]]:
    """Return runs of shards below ``target`` reals to merge, up to about that number each."""
    out: list[list[int]] = []
    total = target
    for number, size in enumerate(sizes):
        if size >= target:
            continue
        if total + size > target:
            out.append([])
            total = 0
        out[-1].append(number)
        total += size
    return [group for group in out if len(group) > 1]


def merge_shards(
    manifold: StoredManifold, output: str, numbers: Sequence[int], folder: str
) -> ShardEntry:
    """Write some shards as one; return its entry."""
    entries = [manifold.manifest["shards"][number] for number in numbers]
    tables = [storage.read_parquet(storage.join(output, e["rows"]["path"])) for e in entries]
    plan = SearchPlan("bounds") if manifold.basis is not None else SearchPlan()
    shard = manifold.read(plan, numbers)
    common = [name for name in ROWS if all(name in table.column_names for table in tables)]
    rows = pa.concat_tables([table.select(common) for table in tables])
    merged = write_rows(output, folder, rows, shard.vectors)
    merged["duplicates"] = sum(entry["duplicates"] for entry in entries)
    if shard.keys is not None:
        merged["keys"] = write_array(output, f"{folder}/keys.npy", shard.keys)
    return merged


def _name(shards: Sequence[ShardEntry], group: Sequence[int]) -> str:
    """Return a name of the reals in some shards: other reals are never written under it."""
    return storage.digest([shards[number]["content"] for number in group])[:12]


def compact_manifold(
    output: str, shards: int, *, demand: pools.Demand = pools.ANY
) -> ManifoldManifest:
    """Merge small shards until there are about ``shards``; return the manifest.

    The manifold's hash stays. The files of the merged shards stay, too, until the next compaction,
    for processes that read them now.
    """
    manifold = StoredManifold.open(output)
    pool = pools.pool(demand, uses_gpu=False)

    def change(manifest: ManifoldManifest) -> ManifoldManifest | None:
        import ray

        now = StoredManifold(manifold.uri, manifest)
        old = manifest["shards"]
        merging = merge_groups([entry["reals"] for entry in old], -(-manifest["reals"] // shards))
        if not merging:
            return None
        pool.wait(len(merging))
        merge = ray.remote(num_cpus=pool.num_cpus)(merge_shards)
        new = ray.get(
            [
                merge.remote(now, manifold.uri, group, f"shard-{_name(old, group)}-{n:05d}")
                for n, group in enumerate(merging)
            ]
        )
        gone = {n for group in merging for n in group}
        untouched = [entry for n, entry in enumerate(old) if n not in gone]
        for folder in manifest.get("obsolete", []):
            remove_shard(storage.join(manifold.uri, folder))
        obsolete = [old[n]["rows"]["path"].partition("/")[0] for n in sorted(gone)]
        counts = {"from": len(old), "to": len(untouched) + len(new)}
        compacted = [*manifest.get("compacted", []), counts]
        return {**manifest, "shards": untouched + new, "obsolete": obsolete, "compacted": compacted}

    return _update(manifold, change)
