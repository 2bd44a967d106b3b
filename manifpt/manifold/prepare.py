"""The files for search, written after a manifold's shards: directions, keys, and measurements.

The cheapest exact plan is found by timing, on reals of the manifold that are not compared with
themselves (which makes them held-out reals) and on the same reals with noise. The distances of
held-out reals give every later distance its percentile.
"""

import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch

from manifpt import storage
from manifpt.engine import pools
from manifpt.engine.tasks import result, results, task
from manifpt.images.ids import image_id
from manifpt.manifold.basis import Basis
from manifpt.manifold.denoiser import FEWEST, Denoiser
from manifpt.manifold.embed import write_array
from manifpt.manifold.geometry import Geometry
from manifpt.manifold.index import approximate
from manifpt.manifold.manifold_format import ChosenPlans, IndexEntry, ManifoldManifest, TimingCard
from manifpt.manifold.metric import Whitening
from manifpt.manifold.product import MULTIPLIERS
from manifpt.manifold.search import Neighbours, SearchPlan, nearest, search
from manifpt.manifold.shard import Shard
from manifpt.manifold.stored import StoredManifold
from manifpt.nets.device import device_and_precision, threads_of
from manifpt.outputs.formats import FileEntry

SAMPLE_BYTES = 256 * 2**20
SAMPLE_REALS = 4096
DIRECTIONS = 256
FIRST_DIRECTIONS = (16, 32, 64, 128)
QUERIES = 256
REPEATS = 3
# A plan that took this multiple of the best time is not timed again.
HOPELESS = 2
# Threads of one library that still wait for work take the cores of the next: let them go to sleep.
PAUSE = 0.05
NOISE = 0.1
HELD_OUT = 1000
# Search by bounds must be faster for each kind of query, not only on average.
MARGIN = 1.05
INDEX_COST = 1.1
PLAIN, PRUNED, APPROXIMATE = "exact-plain", "exact-pruned", "approximate"


def fit_basis(sample: np.ndarray) -> Basis | None:
    """Return the principal directions of a sample of points; None if they are too few to help."""
    size = min(DIRECTIONS, sample.shape[1] // 8, len(sample) // 2)
    return Basis.fit(sample, size) if size >= 16 else None


def shard_sample(manifold: StoredManifold, most: int) -> Shard:
    """Return the first shards of a manifold as one: at most ``most`` bytes, but at least one shard.

    Reals are distributed over shards by hash, so that any shard is a random sample.
    """
    entries = manifold.manifest["shards"]
    sizes = np.cumsum([entry["reals"] * manifold.dimension * 4 for entry in entries])
    return manifold.read(SearchPlan(), range(max(1, int((sizes <= most).sum()))))


def write_whitening(manifold: StoredManifold, output: str) -> FileEntry:
    """Fit a covariance to a sample of vectors and write it; return its entry.

    If the sample has all reals, the result depends neither on their shards nor on their order. One
    thread is used, so that it does not depend on the number of threads.
    """
    shard = shard_sample(manifold, SAMPLE_BYTES)
    rows = np.argsort(shard.pixel_sha256)[:SAMPLE_REALS]
    with threads_of(1):
        whitening = Whitening.fit(shard.vectors[rows])
    return write_array(output, "whitening.npy", whitening.lines())


def write_geometry(manifold: StoredManifold, output: str) -> FileEntry:
    """Learn the geometry of a sample of vectors and write it; return its entry.

    One thread is used, so that the same reals give the same geometry.
    """
    shard = shard_sample(manifold, SAMPLE_BYTES)
    rows = np.argsort(shard.pixel_sha256)[:SAMPLE_REALS]
    sink = io.BytesIO()
    with threads_of(1):
        torch.save(Geometry.fit(shard.vectors[rows]).state(), sink)
    path = "geometry.pt"
    return {"path": path, **storage.write_bytes(storage.join(output, path), sink.getvalue())}


def write_denoiser(manifold: StoredManifold, output: str, steps: int) -> FileEntry:
    """Train a denoiser on a sample of the reals and write it; return its entry.

    It uses all cores of the node, because nothing else can run meanwhile.
    """
    shard = shard_sample(manifold, SAMPLE_BYTES)
    shape = manifold.manifest["shape"]
    rows = shard.vectors[np.argsort(shard.pixel_sha256)].reshape(-1, *shape)
    sink = io.BytesIO()
    with threads_of(os.cpu_count() or 1):
        torch.save(Denoiser.fit(rows, steps=steps, device=device_and_precision()[0]).state(), sink)
    path = "denoiser.pt"
    return {"path": path, **storage.write_bytes(storage.join(output, path), sink.getvalue())}


def write_basis(manifold: StoredManifold, output: str) -> FileEntry | None:
    """Fit the basis to a sample and write it; return its entry."""
    shard = shard_sample(manifold, SAMPLE_BYTES)
    rows = np.random.default_rng(0).permutation(len(shard.ids))[:SAMPLE_REALS]
    basis = fit_basis(manifold.metric.points(shard.vectors[np.sort(rows)]))
    if basis is None:
        return None
    return write_array(output, "basis.npy", np.vstack([basis.directions, basis.centre]))


def write_keys(manifold: StoredManifold, output: str, number: int) -> FileEntry:
    """Write the keys of one shard; return their entry."""
    if manifold.basis is None:
        raise ValueError("a manifold without a basis has no keys")
    shard = manifold.read(SearchPlan(), [number])
    folder = manifold.manifest["shards"][number]["vectors"]["path"].rpartition("/")[0]
    return write_array(output, f"{folder}/keys.npy", manifold.basis.keys(shard.points))


def calibration_queries(shard: Shard, count: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return queries and their excluded hashes: held-out reals, and noisy ones."""
    rng = np.random.default_rng(1)
    rows = rng.permutation(len(shard.ids))[:count]
    reals = shard.vectors[rows]
    noise = NOISE * reals.std() * rng.standard_normal(reals.shape)
    hashes = shard.pixel_sha256[rows]
    return {"held-out": (reals, hashes), "noisy": ((reals + noise).astype(np.float32), hashes)}


def seconds_of(run: Callable[[], object], hopeless: float = np.inf) -> float:
    """Return the median seconds of some repetitions, after one that does not count.

    A first repetition that takes longer than ``hopeless`` is the last.
    """
    run()
    times: list[float] = []
    while len(times) < REPEATS and (not times or times[0] <= hopeless):
        time.sleep(PAUSE)
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


@dataclass(frozen=True)
class Timing:
    """Seconds that a plan took for each kind of query."""

    plan: SearchPlan
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of all kinds together."""
        return sum(self.seconds.values())

    @property
    def cost(self) -> float:
        """The total, but more for FAISS's index, because it is a second copy of the vectors."""
        return self.total * (INDEX_COST if self.plan.method == "index" else 1)

    def row(self) -> TimingCard:
        """Return the timing as JSON values."""
        return {"plan": self.plan.card(), "seconds": self.seconds}


def measure(shard: Shard, plans: Sequence[SearchPlan]) -> list[Timing]:
    """Time plans side by side on one shard."""
    asked = calibration_queries(shard, QUERIES) if len(shard.ids) > 1 else {}
    best = dict.fromkeys(asked, np.inf)
    timings = []
    for plan in plans:
        seconds = {}
        for kind, (queries, hashes) in asked.items():
            run = partial(nearest, [shard], queries, 1, hashes, plan)
            seconds[kind] = seconds_of(run, HOPELESS * best[kind])
            best[kind] = min(best[kind], seconds[kind])
        timings.append(Timing(plan, seconds))
    return timings


def choose(shard: Shard) -> ChosenPlans:
    """Time the exact plans on a shard; return them by kind, and the name of the cheapest."""
    plain = measure(
        shard, [*(SearchPlan(multiply=name) for name in MULTIPLIERS), SearchPlan("index")]
    )
    cheapest = min(plain, key=lambda t: t.cost)
    plans, chosen = {PLAIN: cheapest.plan.card()}, PLAIN
    pruned = []
    if shard.basis is not None:
        sizes = [size for size in FIRST_DIRECTIONS if size < len(shard.basis.directions)]
        # The keys of queries are torch's, and threads of two libraries get in each other's way.
        pruned = measure(shard, [SearchPlan("bounds", "torch", size) for size in sizes])
    if pruned:
        best = min(pruned, key=lambda t: t.total)
        plans[PRUNED] = best.plan.card()
        never_slower = all(s <= MARGIN * cheapest.seconds[k] for k, s in best.seconds.items())
        chosen = PRUNED if best.total < cheapest.total and never_slower else PLAIN
    return {
        "plans": plans,
        "chosen": chosen,
        "measured": [timing.row() for timing in [*plain, *pruned]],
    }


def calibrate_search(manifold: StoredManifold, threads: int) -> ChosenPlans:
    """Measure all exact plans on a sample of the manifold; return an entry of the manifest."""
    with threads_of(threads):
        shard = shard_sample(manifold, SAMPLE_BYTES)
        if manifold.basis is not None:
            keys = manifold.basis.keys(shard.points)
            shard = replace(shard, basis=manifold.basis, keys=keys, indexes={}, _shortened={})
        return choose(shard)


def write_index(manifold: StoredManifold, output: str, factory: str) -> IndexEntry:
    """Build an approximate index, measure its recall on held-out reals, write it."""
    shard = manifold.read(SearchPlan())
    index = approximate(np.ascontiguousarray(shard.points - shard.centre), factory)
    shard.indexes[factory] = index, np.zeros_like
    queries, hashes = calibration_queries(shard, HELD_OUT)["held-out"]
    plan = SearchPlan("index", factory=factory)
    found = search(shard, queries, 1, hashes, plan)
    exact = nearest([shard], queries, 1, hashes)
    data = faiss.serialize_index(index).tobytes()
    entry = storage.write_bytes(storage.join(output, "index.faiss"), data)
    recall = float((found.id == exact.id).mean())
    return {"plan": plan.card(), "recall": recall, "path": "index.faiss", **entry}


def held_out_of(manifold: StoredManifold, number: int) -> tuple[np.ndarray, ...]:
    """Return the vectors, pixel hashes and ids of a shard's part of the held-out reals."""
    shard = manifold.read(SearchPlan(), [number])
    share = len(shard.ids) / manifold.manifest["reals"]
    rows = np.argsort(shard.pixel_sha256)[: max(1, round(HELD_OUT * share))]
    return shard.vectors[rows], shard.pixel_sha256[rows], shard.ids[rows]


def held_out_found(manifold: StoredManifold, number: int, *asked: Any) -> np.ndarray:
    """Return the distances of held-out reals to their nearest in one shard, inf for none.

    A tile is not compared with others of its image, like the tiles of a new image.
    """
    queries, hashes, ids = (np.concatenate(part) for part in zip(*asked, strict=True))
    shard = manifold.read(SearchPlan(), [number])
    count = max(1, manifold.rule.tiles)
    step = -(-len(ids) // count)  # as many neighbours at once as without tiles
    parts = [slice(start, start + step) for start in range(0, len(ids), step)]
    return np.concatenate(
        [
            _of_others(search(shard, queries[part], count, hashes[part], SearchPlan()), ids[part])
            for part in parts
        ]
    )


def _of_others(found: Neighbours, ids: np.ndarray) -> np.ndarray:
    """Return the distance of each row's nearest real that is of no image of ``ids``."""
    others = np.array([[image_id(str(near)) for near in line] for line in found.id])
    same = others == np.array([[image_id(str(own))] for own in ids])
    nearest_of: np.ndarray = np.where(same, np.inf, found.distance).min(1)
    return nearest_of


def write_all_keys(
    draft: ManifoldManifest, output: str, pool: pools.Pool, numbers: Sequence[int]
) -> None:
    """Write the keys of some shards in tasks, and their entries into the draft of a manifest."""
    if draft["search"]["basis"] is None:
        return
    manifold = StoredManifold(output, draft)
    written = results(pool, [task(pool, write_keys, manifold, output, n) for n in numbers])
    for number, keys in zip(numbers, written, strict=True):
        draft["shards"][number]["keys"] = keys


def measure_held_out(draft: ManifoldManifest, output: str, pool: pools.Pool) -> None:
    """Measure distances of held-out reals to the manifold; write quantiles into the draft."""
    manifold = StoredManifold(output, draft)
    numbers = range(len(draft["shards"]))
    asked = [task(pool, held_out_of, manifold, number) for number in numbers]
    found = results(pool, [task(pool, held_out_found, manifold, n, *asked) for n in numbers])
    distances = np.min(found, axis=0)
    marks = np.quantile(distances[np.isfinite(distances)], np.linspace(0, 1, 101))
    draft["held_out"] = {"reals": len(distances), "distances": marks.tolist()}


def prepare(
    draft: ManifoldManifest,
    output: str,
    pool: pools.Pool,
    factory: str | None,
    *,
    geometry: bool,
    denoiser: int = 0,
) -> None:
    """Complete the manifest of a manifold whose shards are written, in tasks."""
    search_part = draft["search"]
    vectors = StoredManifold(output, {**draft, "metric": "euclidean"})
    if geometry:
        draft["geometry"] = result(pool, write_geometry, vectors, output)
    if denoiser and draft["reals"] < FEWEST:
        print(
            f"no denoiser: {draft['reals']} reals are too few, give {FEWEST} or more",
            file=sys.stderr,
            flush=True,
        )
    elif denoiser:
        print(f"denoiser: {denoiser} steps, which can take minutes", file=sys.stderr, flush=True)
        draft["denoiser"] = result(pool, write_denoiser, vectors, output, denoiser)
    if draft["metric"] == "whitened":
        draft["whitening"] = result(pool, write_whitening, vectors, output)
    search_part["basis"] = result(pool, write_basis, StoredManifold(output, draft), output)
    write_all_keys(draft, output, pool, range(len(draft["shards"])))
    manifold = StoredManifold(output, draft)
    search_part |= result(pool, calibrate_search, manifold, pool.threads)
    if factory is not None:
        index: IndexEntry = result(pool, write_index, manifold, output, factory)
        search_part["index"] = index
        search_part["plans"][APPROXIMATE] = index["plan"]
    measure_held_out(draft, output, pool)


def search_text(manifold: StoredManifold) -> str:
    """Return the plan of a manifold's search and its alternatives, as text."""
    found = manifold.manifest["search"]
    count = len(manifold.manifest["shards"])
    lines = [
        f"{manifold.manifest['reals']} reals of {manifold.dimension} numbers in {count} shards, "
        f"{manifold.size / 2**20:.0f} MiB, {manifold.metric.name}",
        f"auto is {found['chosen']}: {SearchPlan(**found['plans'][found['chosen']])}",
        f"milliseconds for {QUERIES} queries, median of {REPEATS}, when it was built:",
    ]
    for row in found["measured"]:
        times = "  ".join(f"{kind} {1e3 * s:8.1f}" for kind, s in row["seconds"].items())
        lines.append(f"  {SearchPlan(**row['plan'])!s:<36}{times}")
    if found["index"]:
        plan, recall = SearchPlan(**found["index"]["plan"]), found["index"]["recall"]
        lines.append(f"approximate is {plan}, recall {recall:.3f} on held-out reals")
    marks = manifold.manifest["held_out"]["distances"]
    lines.append(
        f"held-out reals lie {marks[0]:.3f} to {marks[-1]:.3f} away, half within {marks[50]:.3f}"
    )
    return "\n".join(lines)
