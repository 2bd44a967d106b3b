"""The real-data manifold: embedded reals in shards, and exact search for the nearest of them."""

from manifpt.manifold.build import build_manifold
from manifpt.manifold.search import Neighbours, nearest
from manifpt.manifold.shard import Manifold, Shard

__all__ = ["Manifold", "Neighbours", "Shard", "build_manifold", "nearest"]
