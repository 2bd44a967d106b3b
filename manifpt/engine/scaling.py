"""Nodes: those that are up, those that a job asks the autoscaler for, and the wait for the first.

A stage begins as soon as one of its processes fits, and grows as further nodes come. The request is
held while a stage waits; then Ray Data, Ray Train and Ray itself ask for the resources that they
could use.
"""

import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence

from manifpt.errors import ManifptError

Bundle = Mapping[str, float]
# A spot machine that pulls an image of 10 GB needs some 10 minutes; this is for a busy zone, too.
WAIT_SECONDS = 1800.0
WAIT = "MANIFPT_NODE_WAIT_SECONDS"
SAY_SECONDS, LOOK_SECONDS = 30.0, 2.0
# The request of a job that was killed is forgotten after these seconds.
EXPIRE_SECONDS = 60.0


def wait_seconds() -> float:
    """Return the seconds that a job waits for a node."""
    given = os.environ.get(WAIT, "")
    try:
        return float(given or WAIT_SECONDS)
    except ValueError:
        raise ManifptError(f"{WAIT}={given}: is no number of seconds") from None


def nodes_up() -> list[dict[str, float]]:
    """Return the resources of each node that is up and has CPUs or GPUs."""
    import ray

    alive = (dict(node["Resources"]) for node in ray.nodes() if node["Alive"])
    return [has for has in alive if has.get("CPU") or has.get("GPU")]


def bundles_fit(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> bool:
    """Tell whether nodes hold all bundles at once, each bundle on one of them."""
    left = [dict(node) for node in nodes]
    for bundle in bundles:
        needs = {name: value for name, value in bundle.items() if value}
        for node in left:
            if all(node.get(name, 0.0) >= value - 1e-9 for name, value in needs.items()):
                for name, value in needs.items():
                    node[name] -= value
                break
        else:
            return False
    return True


def node_cpus() -> int:
    """Return the CPUs of the smallest node that is up and has any."""
    return max(1, int(min((has["CPU"] for has in nodes_up() if has.get("CPU")), default=1.0)))


def threads_here(count: int) -> int:
    """Return ``count``, but not more than the CPUs of this process's node."""
    import ray

    if count == 1 or not ray.is_initialized():
        return count
    mine = ray.get_runtime_context().get_node_id()
    cpus = (n["Resources"].get("CPU") for n in ray.nodes() if n["NodeID"] == mine)
    return max(1, min(count, int(next(cpus, None) or count)))


def wait_for(first: Sequence[Bundle], wanted: Sequence[Bundle] = ()) -> bool:
    """Wait until ``first`` fits on the nodes that are up; tell whether ``wanted`` fits, too.

    The autoscaler is asked for ``wanted``, of which ``first`` is a part, meanwhile. Raise
    ManifptError if no node comes in time.

    ``ray.autoscaler.sdk.request_resources`` is one value for the whole cluster, which the actor
    that asks for Ray Data and Ray Train overwrites every 20 s (Ray 2.60). Therefore the request
    goes to that actor: it adds up the requests of all jobs, and forgets those of dead jobs. It also
    counts requested resources as taken, so that nothing is requested while Ray Data works.
    """
    wanted = wanted or first
    if bundles_fit(wanted, nodes_up()):
        return True
    from ray.data._internal.cluster_autoscaler import DefaultAutoscalingCoordinator

    coordinator = DefaultAutoscalingCoordinator(f"manifpt-{uuid.uuid4()}")
    asked = [{name: value for name, value in b.items() if value} for b in wanted]
    try:
        for _ in _waiting(first, wanted):
            coordinator.request_resources(asked, expire_after_s=EXPIRE_SECONDS)
    finally:
        coordinator.cancel_request()
    return bundles_fit(wanted, nodes_up())


def _waiting(first: Sequence[Bundle], wanted: Sequence[Bundle]) -> Iterator[None]:
    """Yield once in a while until ``first`` fits; print the request and the time waited."""
    limit, started, said = wait_seconds(), time.monotonic(), -math.inf
    needs = f"{_total(first)}, or up to {_total(wanted)}" if first != wanted else _total(first)
    while True:
        nodes, waited = nodes_up(), time.monotonic() - started
        state = f"{len(nodes)} up with {_total(nodes)}"
        if bundles_fit(first, nodes):
            if waited > LOOK_SECONDS:
                _say(f"nodes: {state}, after {waited:.0f} s")
            return
        if waited > limit:
            raise ManifptError(
                f"no node came in {limit:.0f} s for {needs} ({state}); look at `ray status`, see "
                f"that a type of node holds it, or set {WAIT} to wait longer"
            )
        if waited - said >= SAY_SECONDS:
            said = waited
            _say(f"waiting for nodes: {needs}; {state}; {waited:.0f} s of at most {limit:.0f} s")
        yield
        time.sleep(LOOK_SECONDS)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _total(bundles: Sequence[Bundle]) -> str:
    gpus = sum(bundle.get("GPU", 0.0) for bundle in bundles)
    cpus = f"{sum(bundle.get('CPU', 0.0) for bundle in bundles):g} CPU"
    return f"{cpus} and {gpus:g} GPU" if gpus else cpus
