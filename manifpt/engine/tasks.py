"""Calls as tasks of Ray, or as plain calls if the pool is this process alone."""

from collections.abc import Callable, Sequence
from typing import Any

from manifpt.engine.pools import Pool


def task(pool: Pool, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Start a call and return a reference to its result; without a cluster, the result itself.

    A reference may be an argument of another call. ``options`` are Ray's.
    """
    if pool.here:
        return function(*args)
    import ray

    holds = {"num_cpus": pool.num_cpus} | options
    return ray.remote(**holds)(function).remote(*args)


def results(pool: Pool, started: Sequence[Any]) -> list[Any]:
    """Return the results of calls that ``task`` started, in order."""
    if pool.here:
        return list(started)
    import ray

    return list(ray.get(list(started)))


def result(pool: Pool, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the result of one call."""
    return results(pool, [task(pool, function, *args, **options)])[0]
