"""A manifold from the reals of another one: fewer reals or another metric, without embedding.

A sample has the reals of the smallest pixel hashes: it is random, depends on neither shards nor
order, and contains each smaller sample.
"""

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.engine import pools
from manifpt.errors import ManifptError
from manifpt.manifold.build import PIXELS, ManifoldSettings, content_sha256, drafted
from manifpt.manifold.embed import write_rows
from manifpt.manifold.manifold_format import InputFacts, ManifoldManifest, ShardEntry
from manifpt.manifold.prepare import prepare
from manifpt.manifold.search import SearchPlan
from manifpt.manifold.stored import StoredManifold
from manifpt.outputs import claims
from manifpt.spaces.learned import keep_weights


def derive_manifold(
    source: str,
    output: str,
    *,
    settings: ManifoldSettings = ManifoldSettings(),
    reals: int | None = None,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> ManifoldManifest:
    """Publish a manifold of the reals of ``source``, or of ``reals`` of them; return its manifest.

    It has as many shards as its source, and the models of ``settings`` that are learned from
    vectors.
    """
    import ray

    manifold = StoredManifold.open(source)
    has, output = manifold.manifest["reals"], storage.absolute(output)
    if reals is not None and reals > has:
        raise ManifptError(f"--reals {reals}: {source} has {has}; ask for fewer")
    if settings.denoiser and manifold.space.name != PIXELS:
        raise ManifptError(f"--denoiser: is of pixels, not of {manifold.space.name}; leave it out")
    key = storage.digest([manifold.sha256, reals, *settings.learned()])
    pool = pools.pool(demand, uses_gpu=settings.denoiser > 0)
    read = [("--input", manifold.uri)]
    with claims.claim(output, "manifold", key, apart=read, terms=terms) as claim:
        if claim.finished:
            return claim.finished
        space = keep_weights(manifold.space, output)
        take, write = (ray.remote(num_cpus=pool.num_cpus)(task) for task in (_last, _write))
        numbers = range(len(manifold.manifest["shards"]))
        pool.wait(len(numbers))
        last = ray.get(take.remote(manifold, reals)) if reals else None
        entries = ray.get([write.remote(manifold, output, number, last) for number in numbers])
        old = manifold.manifest
        facts: InputFacts = {
            "inputs": old["inputs"],
            "rows_in": old["rows_in"],
            "ok": old["ok"],
            "quarantined": old["quarantined"],
            "by_error": old["by_error"],
        }
        draft = drafted(entries, space, old["decode"], settings.metric, facts)
        draft |= {"space": old["space"], "shape": old["shape"]}
        draft |= {"duplicates": old["duplicates"], "appended": old["appended"]}
        draft["derived_from"] = {"uri": manifold.uri, "sha256": manifold.sha256}
        prepare(
            draft,
            output,
            pool,
            settings.factory,
            geometry=settings.geometry,
            denoiser=settings.denoiser,
        )
        draft["content_sha256"] = content_sha256(draft)
        return claim.publish(draft)


def _last(manifold: StoredManifold, reals: int) -> str:
    """Return the largest pixel hash of the first ``reals`` reals of a manifold, by hash."""
    rows = [entry["rows"]["path"] for entry in manifold.manifest["shards"]]
    tables = [storage.read_parquet(storage.join(manifold.uri, p), ["pixel_sha256"]) for p in rows]
    hashes = np.array(pa.concat_tables(tables)["pixel_sha256"].to_pylist(), dtype=str)
    return str(np.partition(hashes, reals - 1)[reals - 1])


def _write(manifold: StoredManifold, output: str, number: int, last: str | None) -> ShardEntry:
    """Write a shard again with its reals up to a pixel hash; return its entry."""
    entry = manifold.manifest["shards"][number]
    rows = storage.read_parquet(storage.join(manifold.uri, entry["rows"]["path"]))
    vectors = manifold.read(SearchPlan(), [number]).vectors
    if last is not None:
        kept = np.array(rows["pixel_sha256"].to_pylist(), dtype=str) <= last
        rows, vectors = rows.filter(pa.array(kept)), vectors[kept]
    if not len(vectors):
        return {"reals": 0, "duplicates": 0}
    return {"duplicates": 0, **write_rows(output, f"shard-{number:05d}", rows, vectors)}
