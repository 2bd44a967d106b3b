"""The real-data manifold: embedded reals in shards, and exact search for the nearest of them."""

from manifpt.manifold.build import build_manifold
from manifpt.manifold.metric import Metric
from manifpt.manifold.search import Neighbours, Plan, nearest
from manifpt.manifold.shard import Shard
from manifpt.manifold.stored import Manifold

__all__ = ["Manifold", "Metric", "Neighbours", "Plan", "Shard", "build_manifold", "nearest"]
