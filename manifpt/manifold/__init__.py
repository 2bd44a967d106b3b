"""The real-data manifold: embedded reals in shards, and exact search for the nearest of them."""

from manifpt.manifold.build import build_manifold
from manifpt.manifold.metric import Metric
from manifpt.manifold.search import Neighbours, SearchPlan, nearest
from manifpt.manifold.shard import Shard
from manifpt.manifold.stored import StoredManifold

__all__ = [
    "Metric",
    "Neighbours",
    "SearchPlan",
    "Shard",
    "StoredManifold",
    "build_manifold",
    "nearest",
]
