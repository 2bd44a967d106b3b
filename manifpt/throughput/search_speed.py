"""Speed of the search, beside FAISS's flat index, a plain matrix product, and a scan.

All run in one process on the same cores, alternating, so that a noisy machine is noisy for all; on
a GPU, too, if there is one.
Each shape has a process of its own, so that peak memory is that shape's.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import faiss
import numpy as np
import threadpoolctl
import torch

from manifpt.errors import ManifptError
from manifpt.manifold.index import has_gpu
from manifpt.manifold.prepare import PAUSE, PLAIN, choose, fit_basis
from manifpt.manifold.product import MULTIPLIERS
from manifpt.manifold.search import SearchPlan, nearest
from manifpt.manifold.shard import Shard
from manifpt.spaces import Space, make_space
from manifpt.throughput.photographs import crops, generated, photographs

BATCH = 256
NOISE = 0.1
NAIVE_QUERIES = 2
ORACLE_QUERIES = 8
ORACLE_ROWS = 1024
SIDE = 2048
FLAT, SCAN = "faiss.IndexFlatL2", "one query at a time"


@dataclass(frozen=True)
class Shape:
    """The size of a search: reals of a space at an image size, and the number of queries."""

    space: str
    size: int
    reals: int
    queries: int = 512


QUICK = (Shape("rgb", 28, 10_000), Shape("freq", 28, 10_000), Shape("rgb", 64, 5_000))
FULL = (
    Shape("rgb", 64, 50_000),
    Shape("rgb", 128, 16_000, 256),
    Shape("freq", 28, 50_000),
    Shape("rgb", 28, 100_000),
    Shape("rgb", 32, 10_000),
    Shape("freq", 64, 10_000),
)


def peak_gflops(threads: int) -> dict[str, float]:
    """Return float32 GFLOP/s of a square matrix product, by library."""
    rng = np.random.default_rng(0)
    left, right = (rng.random((SIDE, SIDE), dtype=np.float32) for _ in range(2))
    out, bias = np.empty((SIDE, SIDE), np.float32), np.zeros(SIDE, np.float32)
    found = {}
    torch.set_num_threads(threads)
    for name, multiplier in MULTIPLIERS.items():
        times = []
        for _ in range(5):
            started = time.perf_counter()
            multiplier.product(left, right, bias, out)
            times.append(time.perf_counter() - started)
        found[name] = 2 * SIDE**3 / min(times) / 1e9
    return found


def by_flat(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return FAISS's exact index as a search: queries -> rows."""
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)
    return lambda queries: index.search(queries, 1)[1][:, 0]


def by_gpu_flat(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the same on a GPU."""
    index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), vectors.shape[1])
    index.add(vectors)
    return lambda queries: index.search(queries, 1)[1][:, 0]


def by_matmul(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a plain product as a search: |x|^2 - 2 q.x, and its smallest."""
    norms = np.einsum("ij,ij->i", vectors, vectors)
    return lambda queries: np.argmin(norms - 2 * (queries @ vectors.T), axis=1)


def by_scan(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the loop over queries with all reals each."""
    return lambda queries: np.array([np.square(vectors - q).sum(1).argmin() for q in queries])


def batched(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray) -> np.ndarray:
    """Search in batches of BATCH."""
    return np.concatenate([search(queries[n : n + BATCH]) for n in range(0, len(queries), BATCH)])


def squares(vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the squared distances of queries to their rows, in float64."""
    out: np.ndarray = np.square(queries.astype(np.float64) - vectors[rows]).sum(1)
    return out


def oracle(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the smallest squared distance of each query, in float64."""
    best = np.full(len(queries), np.inf)
    for start in range(0, len(vectors), ORACLE_ROWS):
        some = vectors[start : start + ORACLE_ROWS].astype(np.float64)
        for n, query in enumerate(queries):
            best[n] = min(best[n], np.square(query - some).sum(1).min())
    return best


def queries_by_kind(
    shape: Shape, photos: Sequence[Any], reals: np.ndarray
) -> dict[str, np.ndarray]:
    """Return queries by kind: generated images, reals with noise, unseen reals."""
    space = make_space(shape.space, shape.size)
    rng = np.random.default_rng(2)
    some = reals[rng.permutation(len(reals))[: shape.queries]]
    noisy = some + rng.normal(0, 255 * NOISE, some.shape)
    images = {
        "generated": generated(reals, shape.queries, 3),
        "noisy": np.clip(noisy, 0, 255).round().astype(np.uint8),
        "unseen": crops(photos, shape.size, shape.queries, 4, seen=False),
    }
    return {kind: embedded(space, some) for kind, some in images.items()}


def embedded(space: Space, images: np.ndarray) -> np.ndarray:
    """Return N x H x W x 3 uint8 images as vectors, N x d float32."""
    out = np.empty((len(images), int(np.prod(space.shape))), np.float32)
    for start in range(0, len(images), 1024):
        some = images[start : start + 1024]
        out[start : start + 1024] = space.embed(some).reshape(len(some), -1)
    return out


def _engines(
    vectors: np.ndarray,
) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return all ways to search vectors, N x d, by name: queries -> rows."""
    ids = np.array([f"{n:08d}" for n in range(len(vectors))], dtype=object)
    rng = np.random.default_rng(5)
    basis = fit_basis(vectors[np.sort(rng.permutation(len(vectors))[:4096])])
    keys = basis.keys(vectors) if basis else None
    shard = Shard(vectors, ids, ids, basis=basis, keys=keys)
    chosen = choose(shard)
    plans = {kind: SearchPlan(**plan) for kind, plan in chosen["plans"].items()}
    auto = plans[chosen["chosen"]]

    def ours(plan: SearchPlan) -> Callable[[np.ndarray], np.ndarray]:
        return lambda queries: nearest([shard], queries, 1, None, plan).id[:, 0].astype(np.int64)

    engines = {
        f"manifpt auto ({auto})": ours(auto),
        f"manifpt plain ({plans[PLAIN]})": ours(plans[PLAIN]),
        FLAT: by_flat(vectors),
        "NumPy product": by_matmul(vectors),
        SCAN: by_scan(vectors),
    }
    if has_gpu():
        engines["manifpt on a GPU"] = ours(SearchPlan("index"))
        engines["faiss.GpuIndexFlatL2"] = by_gpu_flat(vectors)
    return engines


def _timed(
    engines: dict[str, Callable[[np.ndarray], np.ndarray]], queries: np.ndarray, repeats: int
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the median seconds of each engine for all queries, and the rows that it gives.

    The loop over queries gets few of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    found = {}
    for repeat in range(repeats + 1):
        for name, search in engines.items():
            some = queries[:NAIVE_QUERIES] if name == SCAN else queries
            time.sleep(PAUSE)
            started = time.perf_counter()
            found[name] = batched(search, some)
            if repeat:  # the first warms up
                took = time.perf_counter() - started
                seconds[name].append(took * len(queries) / len(some))
    return {name: float(np.median(times)) for name, times in seconds.items()}, found


def mismatches(
    vectors: np.ndarray, queries: np.ndarray, found: dict[str, np.ndarray]
) -> dict[str, int]:
    """Return for each engine the number of queries whose row is not the nearest.

    No engine may find a nearer real than another; some queries meet all reals in float64.
    """
    near = {name: squares(vectors, queries[: len(r)], r) for name, r in found.items()}
    best = np.min([d for d in near.values() if len(d) == len(queries)], axis=0)
    best[:ORACLE_QUERIES] = oracle(vectors, queries[:ORACLE_QUERIES])
    return {name: int((d > best[: len(d)]).sum()) for name, d in near.items()}


class SearchSpeed(TypedDict):
    """The speed of one engine on a shape; ``mismatches`` are ids that differ from the reference."""

    engine: str
    space: str
    size: int
    reals: int
    queries: int
    dim: int
    query_kind: str
    seconds_median: float
    seconds_flat_median: float
    speedup_over_flat: float
    gflops: float
    peak_gflops: float
    mismatches: int
    peak_rss_mb: float


def measured_rows(shape: Shape, inputs: Sequence[str], repeats: int, threads: int) -> Iterator[Any]:
    """Measure one shape; yield one row an engine and kind of query."""
    threadpoolctl.threadpool_limits(threads)
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    photos = photographs(inputs)
    reals = crops(photos, shape.size, shape.reals, 1, seen=True)
    space = make_space(shape.space, shape.size)
    asked = queries_by_kind(shape, photos, reals)
    vectors = embedded(space, reals)
    del reals
    engines = _engines(vectors)
    peak = max(peak_gflops(threads).values())
    for kind, queries in asked.items():
        medians, found = _timed(engines, queries, repeats)
        wrong = mismatches(vectors, queries, found)
        work = 2 * len(queries) * vectors.size / 1e9
        for name, median in medians.items():
            yield {
                "engine": name,
                "space": shape.space,
                "size": shape.size,
                "reals": shape.reals,
                "queries": shape.queries,
                "dim": vectors.shape[1],
                "query_kind": kind,
                "seconds_median": median,
                "seconds_flat_median": medians[FLAT],
                "speedup_over_flat": medians[FLAT] / median,
                "gflops": work / median,
                "peak_gflops": peak,
                "mismatches": wrong[name],
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }


def _measure(pipe: Any, *args: Any) -> None:
    pipe.send(list(measured_rows(*args)))


def measure_shapes(
    shapes: Sequence[Shape], inputs: Sequence[str], repeats: int, threads: int
) -> Iterator[list[SearchSpeed]]:
    """Yield the rows of each shape, measured in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    for shape in shapes:
        here, there = spawn.Pipe()
        args = (there, shape, inputs, repeats, threads)
        process = spawn.Process(target=_measure, args=args, daemon=True)
        process.start()
        there.close()
        try:
            rows = here.recv()
        except EOFError:
            process.join()
            reason = f"its process ended with {process.exitcode}; too little memory?"
            raise ManifptError(f"benchmark: {shape} was not measured, {reason}") from None
        process.join()
        yield rows


def table(rows: Sequence[SearchSpeed]) -> str:
    """Return rows as text."""
    lines = [
        f"{'space':<5}{'dim':>6}{'reals':>8} {'queries':<10}{'engine':<48}{'seconds':>8}"
        f"{'x flat':>8}{'GFLOP/s':>9}{'% peak':>7}{'wrong':>6}{'RSS MB':>8}"
    ]
    for r in rows:
        share = 100 * r["gflops"] / r["peak_gflops"]
        lines.append(
            f"{r['space']:<5}{r['dim']:>6}{r['reals']:>8} {r['query_kind']:<10}{r['engine']:<48}"
            f"{r['seconds_median']:>8.3f}{r['speedup_over_flat']:>8.2f}{r['gflops']:>9.0f}"
            f"{share:>7.0f}{r['mismatches']:>6}{r['peak_rss_mb']:>8.0f}"
        )
    return "\n".join(lines)
