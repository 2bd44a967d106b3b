"""Manifolds, attributors and spaces from Python: the names that ``import manifpt`` offers."""
