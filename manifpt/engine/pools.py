"""The resources that the cluster has or may get, and the pools of processes that fit on them."""

import os
from dataclasses import dataclass

from manifpt.engine import scaling
from manifpt.errors import ManifptError

# Variables for the limits of the cluster's growth, by Ray's names, if options give none.
LIMITS = {"CPU": "MANIFPT_MAX_CPUS", "GPU": "MANIFPT_MAX_GPUS"}

_share: dict[str, float] | None = None


def limit(share: dict[str, float] | None) -> None:
    """Limit the resources of all tasks of this process to ``share``, by Ray's names.

    For jobs side by side on one cluster, each in a process of its own; None takes the limit away.
    """
    global _share
    _share = share


def shares_memory() -> bool:
    """Tell whether this process has a share of the cluster that says its memory, see ``limit``."""
    return _share is not None and "memory" in _share


_limits: dict[str, float] | None = None


def allow(limits: dict[str, float] | None) -> None:
    """Set the limits of the cluster's growth, by Ray's names; None leaves them to variables."""
    global _limits
    _limits = limits


def limits() -> dict[str, float]:
    """Return the user's limits of the cluster's growth; empty if it does not grow."""
    found = {}
    for name, variable in LIMITS.items():
        given = os.environ.get(variable, "")
        try:
            found[name] = float(given or 0)
        except ValueError:
            raise ManifptError(f"{variable}={given}: is no number") from None
    return {name: value for name, value in (found | (_limits or {})).items() if value}


def capacity() -> dict[str, float]:
    """Return the resources that the cluster has or may get; see ``allow`` and ``limit``."""
    found = whole_cluster()
    if _share is None:
        return found
    # Resources other than CPUs and GPUs, such as memory, are shared in proportion to the CPUs.
    part = min(1.0, _share.get("CPU", 0.0) / max(found.get("CPU", 1.0), 1e-9))
    return {
        name: _share.get(name, 0.0) if name in LIMITS else value * part
        for name, value in (dict.fromkeys(LIMITS, 0.0) | found).items()
    }


def whole_cluster() -> dict[str, float]:
    """Return the resources that the cluster has or may get, for all processes together."""
    import ray

    total = dict(ray.cluster_resources())
    up, most = total.get("CPU", 0.0), limits()
    total |= {name: max(total.get(name, 0.0), value) for name, value in most.items()}
    if up and total["CPU"] > up:  # nodes to come are taken to be like those that are up
        memory = sum(node.get("memory", 0.0) for node in scaling.nodes_up())
        total["memory"] = memory * total["CPU"] / up
    return total


@dataclass(frozen=True)
class Pool:
    """The processes of a stage and the resources of each; ``compiled`` is for its networks.

    With ``here`` the stage runs in this process, and needs no cluster.
    """

    size: int
    num_cpus: float
    num_gpus: float
    threads: int
    compiled: bool = False
    here: bool = False

    @property
    def process(self) -> dict[str, float]:
        """The resources of one process, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus}

    def wait(self, most: int | None = None) -> bool:
        """Wait until a process and a reader fit on the cluster; tell whether the pool does.

        ``most`` is the number of processes that there is work for.
        """
        if self.here:
            return True
        size = min(self.size, most or self.size)
        reader = {"CPU": self.num_cpus}
        return scaling.wait_for([self.process, reader], [self.process] * size + [reader])


@dataclass(frozen=True)
class SearchDemand:
    """The user's demand on a search; None and ``auto`` leave the choice to manifpt.

    ``search`` is auto, exact-plain, exact-pruned or approximate; ``placement`` auto, replicated,
    sharded or scan; ``memory`` the bytes that the manifold may take in the whole job.
    """

    search: str = "auto"
    placement: str = "auto"
    memory: int | None = None
    float16: bool = False


ANY_SEARCH = SearchDemand()


@dataclass(frozen=True)
class Demand:
    """The user's demand on a stage: processes and their GPUs; None leaves the choice to manifpt.

    ``compiled`` asks for networks that embed to be compiled first, ``here`` for this process
    alone, without a cluster. ``search`` is that of the manifolds that the stage searches.
    """

    num_actors: int | None = None
    num_gpus: float | None = None
    compiled: bool = False
    here: bool = False
    search: SearchDemand = ANY_SEARCH


ANY = Demand()
HERE = Demand(here=True)


# The end of the error for a cluster that is too small.
GROWS = ", or say with --max-cpus and --max-gpus how far an autoscaling cluster may grow"


def pool(demand: Demand, *, uses_gpu: bool) -> Pool:
    """Choose a pool for a stage, or check the one that was asked for.

    A reader must find a free CPU beside the pool: with none, Ray Data waits and says nothing. On
    one CPU, reader and actor share it by halves. By default each actor has a GPU if the stage can
    use one and the cluster has any.
    """
    if demand.here:
        threads = len(os.sched_getaffinity(0))
        return Pool(1, 1.0, 0.0, threads, demand.compiled, here=True)
    has = capacity()
    cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    each_gpu = (
        (1.0 if uses_gpu and gpus >= 1 else 0.0) if demand.num_gpus is None else demand.num_gpus
    )
    if each_gpu > 1:
        raise ManifptError("--num-gpus-per-actor: a process uses one GPU; ask for 1 or a part")
    each_cpu = 1.0 if cpus >= 2 else 0.5
    room = int((cpus - each_cpu) / each_cpu)
    if each_gpu:
        room = min(room, int(gpus / each_gpu))
    wanted = demand.num_actors or max(1, room)
    if wanted > room:
        remedy = f"ask for --num-actors {room}" if room > 0 else "ask for fewer GPUs or add nodes"
        raise ManifptError(
            f"the cluster is too small: {wanted} actors of {each_cpu:g} CPU and {each_gpu:g} GPU "
            f"beside a reader do not fit on its {cpus:g} CPU and {gpus:g} GPU; {remedy}{GROWS}"
        )
    # Readers are light: while they wait, the pool may use all cores.
    threads = max(1, round(cpus / wanted))
    return Pool(wanted, each_cpu, each_gpu, threads, demand.compiled)
