"""The placement of a manifold during search, by its size and the memory of the cluster.

    replicated  every process that projects holds all of it: no network;
    sharded     actors hold some shards each, queries go to all, their nearest are merged;
    scan        it stays in storage: each block of it is read once for each batch of queries.

The neighbours are the same in every placement.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from manifpt.engine import pools, scaling, session
from manifpt.engine.pipeline import use_threads
from manifpt.errors import ManifptError
from manifpt.manifold.index import FLAT, has_gpu
from manifpt.manifold.search import Neighbours, SearchPlan, complete, merge, nearest, neighbour_rows
from manifpt.manifold.shard import Shard
from manifpt.manifold.stored import StoredManifold

PLACEMENTS = ("auto", "replicated", "sharded", "scan")
# Share of a node's memory for Ray that a manifold may take; the rest is for queries and products.
SHARE = 0.5
ALONE_BLOCK_BYTES = 256 * 2**20
ANSWER_SECONDS = 900


def plan_of_process(plan: SearchPlan) -> SearchPlan:
    """Return the plan for this process: an exact one goes to the GPU if the process has one."""
    return replace(plan, method="index", factory=FLAT) if plan.exact and has_gpu() else plan


class Searcher(Protocol):
    """Finds the nearest reals, in any placement."""

    @property
    def rows(self) -> int | None:
        """The preferred number of queries of a call; None if that does not matter."""

    def nearest(self, queries: np.ndarray, k: int, excluded: np.ndarray) -> Neighbours:
        """Return the k nearest reals of N x d queries; see ``search.nearest``."""


@dataclass
class Replicated:
    """All of the manifold in this process, read at first use."""

    uri: str
    plan: SearchPlan
    rows: int | None = None

    @cached_property
    def shard(self) -> Shard:
        """All reals."""
        return StoredManifold.open(self.uri).read(self.plan)

    def nearest(self, queries: np.ndarray, k: int, excluded: np.ndarray) -> Neighbours:
        """See ``Searcher``."""
        return nearest([self.shard], queries, k, excluded, plan_of_process(self.plan))


@dataclass
class Scan:
    """The manifold in storage, read in blocks of at most ``block_bytes``."""

    uri: str
    plan: SearchPlan
    block_bytes: int

    @property
    def rows(self) -> int:
        """As many queries as fit in the memory of a block, so that few passes are needed."""
        return max(1, self.block_bytes // StoredManifold.open(self.uri).real_bytes)

    def nearest(self, queries: np.ndarray, k: int, excluded: np.ndarray) -> Neighbours:
        """See ``Searcher``."""
        blocks = StoredManifold.open(self.uri).blocks(self.block_bytes)
        return nearest(blocks, queries, k, excluded, self.plan)


class Holder:
    """An actor that holds some shards. If it dies, Ray starts it again and it reads them again."""

    def __init__(self, uri: str, numbers: list[int], plan: SearchPlan, threads: int) -> None:
        use_threads(scaling.threads_here(threads))
        self.plan = plan_of_process(plan)
        self.shard = StoredManifold.open(uri).read(plan, numbers)

    def reals(self) -> int:
        """Return the number of reals that it holds."""
        return len(self.shard.ids)

    def search(self, queries: np.ndarray, k: int, excluded: np.ndarray) -> Neighbours:
        """Return the k nearest of its reals, with their rows here in place of vectors."""
        return neighbour_rows(self.shard, queries, k, excluded, self.plan)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of some of its rows."""
        found: np.ndarray = self.shard.vectors[rows]
        return found


@dataclass
class Sharded:
    """The manifold in the memory of actors."""

    holders: Sequence[Any]
    rows: int | None = None

    def nearest(self, queries: np.ndarray, k: int, excluded: np.ndarray) -> Neighbours:
        """See ``Searcher``; queries are put in the object store once for all holders.

        Only the vectors of the nearest of all are sent, once the answers are merged.
        """
        import ray

        asked = ray.put(queries), k, ray.put(excluded)
        parts = _answers([holder.search.remote(*asked) for holder in self.holders])
        marked = [
            part._replace(vector=np.insert(part.vector, 0, holder, axis=2))
            for holder, part in enumerate(parts)
        ]
        found = complete(merge(marked, k), k)
        holder, rows = found.vector[:, :, 0], found.vector[:, :, 1]
        wanted = [np.nonzero(holder == n) for n in range(len(self.holders))]
        sent = _answers(
            [
                one.vectors.remote(rows[places])
                for one, places in zip(self.holders, wanted, strict=True)
            ]
        )
        vector = np.empty((*rows.shape, queries.shape[1]), np.float32)
        for places, vectors in zip(wanted, sent, strict=True):
            vector[places] = vectors
        return found._replace(vector=vector)


def _answers(asked: Sequence[Any]) -> list[Any]:
    """Return the answers of holders."""
    import ray

    try:
        found: list[Any] = ray.get(list(asked), timeout=ANSWER_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise ManifptError(
            f"a holder of shards gave no answer in {ANSWER_SECONDS} s; are its nodes up?"
        ) from None
    return found


@dataclass(frozen=True)
class Placement:
    """A choice of placement, its reason, and its resources."""

    kind: str
    why: str
    plan: SearchPlan
    uri: str
    holders: int = 0
    block_bytes: int = 0
    shards: int = 0
    bytes: int = 0
    reserved: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"manifold {self.kind} ({self.why}), search: {self.plan}"

    def searcher(self) -> Searcher:
        """Return the searcher of a process; starts the holders of a sharded manifold."""
        if self.kind == "replicated":
            return Replicated(self.uri, self.plan)
        if self.kind == "scan":
            return Scan(self.uri, self.plan, self.block_bytes)
        return Sharded(self._start_holders())

    def _start_holders(self) -> list[Any]:
        import ray

        each = {name: value / self.holders for name, value in self.reserved.items()}
        scaling.wait_for([each] * self.holders)
        threads = max(1, round(pools.capacity().get("CPU", 1) / self.holders))
        actor = ray.remote(
            num_cpus=each["CPU"],
            num_gpus=each.get("GPU", 0),
            max_restarts=-1,
            max_task_retries=-1,
        )(Holder)
        dealt = [list(range(n, self.shards, self.holders)) for n in range(self.holders)]
        holders = [actor.remote(self.uri, numbers, self.plan, threads) for numbers in dealt]
        ready = [holder.reals.remote() for holder in holders]
        try:
            ray.get(ready, timeout=ANSWER_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise ManifptError(
                f"{self.holders} actors for the manifold did not start in {ANSWER_SECONDS} s; "
                "give the cluster more CPUs, or take --placement scan"
            ) from None
        return holders


def plan_for(manifold: StoredManifold, demand: pools.SearchDemand) -> SearchPlan:
    """Return the plan that was measured to be the cheapest of the kind asked for."""
    measured = manifold.manifest["search"]
    plans = {kind: SearchPlan(**plan) for kind, plan in measured["plans"].items()}
    kind = measured["chosen"] if demand.search == "auto" else demand.search
    if kind not in plans:
        remedy = {
            "approximate": "build it with --index, such as IVF256,Flat",
            "exact-pruned": "it has no directions; take exact-plain",
        }[kind]
        raise ManifptError(f"--search {kind}: the manifold was not built for it; {remedy}")
    return replace(plans[kind], float16=demand.float16)


def placement_kind(size: int, processes: int, memory: int, *, exact: bool) -> str:
    """Return the placement of a manifold of ``size`` bytes, for a number of processes."""
    if size * processes <= memory:
        return "replicated"
    return "sharded" if size <= memory and exact else "scan"


def block_bytes(memory: int, processes: int) -> int:
    """Return the bytes of a manifold that each process that scans it reads at once."""
    return max(1, memory // (2 * processes))


def place(
    manifold: StoredManifold, demand: pools.SearchDemand, pool: pools.Pool
) -> tuple[Placement, pools.Pool]:
    """Choose the placement for a pool of processes that project; return both.

    Holders of shards take half of the CPUs, and half of each GPU that the pool would have had.
    """
    plan = plan_for(manifold, demand)
    size, count = manifold.size, len(manifold.manifest["shards"])
    memory = _memory(demand, size * pool.size)
    copies = f"{pool.size} x {size / 2**20:.0f} MiB"
    kind = demand.placement
    if kind == "auto":
        kind = placement_kind(size, pool.size, memory, exact=plan.exact)
    why = f"{copies}, {memory / 2**20:.0f} MiB for it"
    chosen = Placement(kind, why, plan, manifold.uri)
    if kind == "replicated":
        return chosen, pool
    if not plan.exact:
        raise ManifptError(f"--placement {kind}: an approximate index lies whole in each process")
    if kind == "scan":
        block = block_bytes(memory, pool.size)
        return replace(chosen, plan=replace(plan, method="product"), block_bytes=block), pool
    cpus = pools.capacity().get("CPU", 1.0)
    holders = min(count, max(session.nodes(), int(cpus / 2)))
    # At most half of a node, since a holder cannot be larger than a node.
    reserved = {"CPU": min(cpus / 2, holders * scaling.node_cpus() / 2)}
    smaller = replace(pool, size=max(1, pool.size // 2))
    if pool.num_gpus:
        asked = pool.num_gpus * pool.size
        gpus = max(1, int(asked))
        reserved["GPU"] = asked / gpus / 2 / math.ceil(holders / gpus) * holders
        smaller = replace(pool, num_gpus=pool.num_gpus / 2)
    if smaller.size * smaller.num_cpus + reserved["CPU"] >= cpus:
        smaller = replace(smaller, num_cpus=cpus / 8 / smaller.size)
    chosen = replace(chosen, holders=holders, shards=count, reserved=reserved)
    return chosen, smaller


def place_all(
    manifolds: Sequence[StoredManifold], demand: pools.SearchDemand, pool: pools.Pool
) -> tuple[list[Placement], pools.Pool]:
    """Choose the placements of manifolds that are searched in one pass; see ``place``.

    Several share the memory, and none is distributed over actors.
    """
    if len(manifolds) == 1:
        placement, pool = place(manifolds[0], demand, pool)
        return [placement], pool
    if demand.placement == "sharded":
        raise ManifptError("--placement sharded: is for one manifold; take replicated or scan")
    total = sum(manifold.size for manifold in manifolds)
    memory = _memory(demand, total * pool.size)
    kind = demand.placement
    if kind == "auto":
        kind = "replicated" if total * pool.size <= memory else "scan"
    placed = []
    for manifold in manifolds:
        part = int(memory * manifold.size / total)
        placement, _ = place(manifold, replace(demand, placement=kind, memory=part), pool)
        placed.append(placement)
    return placed, pool


def alone(manifold: StoredManifold) -> Searcher:
    """Return the searcher of a manifold in a process without a cluster.

    A manifold that takes more than its share of the machine's memory is read in blocks.
    """
    plan = plan_for(manifold, pools.ANY_SEARCH)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if manifold.size > SHARE * memory:
        return Scan(manifold.uri, replace(plan, method="product"), ALONE_BLOCK_BYTES)
    return Replicated(manifold.uri, plan)


def _memory(demand: pools.SearchDemand, enough: int) -> int:
    """Return the bytes that manifolds may take in the whole job."""
    return demand.memory or int(SHARE * pools.capacity().get("memory", 2 * enough))
