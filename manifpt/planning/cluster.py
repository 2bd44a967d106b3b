"""The machines that a plan is for, and their prices."""

from dataclasses import dataclass

from manifpt.engine.pools import Pool
from manifpt.errors import ManifptError

GIGABYTE = 1e9


@dataclass(frozen=True)
class Cluster:
    """``nodes`` alike; each has CPUs that Ray counts, real cores, GPUs, and bytes for Ray.

    ``bandwidth`` is the rate of storage in bytes a second a node; None is no limit.
    """

    nodes: int
    cpus: int
    cores: int
    gpus: int
    memory: int
    bandwidth: float | None = None

    def pool(self, actors: int | None, *, uses_gpu: bool) -> Pool:
        """Return the pool of ``pools.pool`` on such a cluster."""
        cpus, gpus = self.nodes * self.cpus, self.nodes * self.gpus
        each = 1.0 if cpus >= 2 else 0.5
        room = int((cpus - each) / each)
        on_gpu = uses_gpu and gpus >= 1
        room = min(room, gpus) if on_gpu else room
        size = actors or max(1, room)
        if size > room:
            raise ManifptError(
                f"--workers {size}: {room} fit beside a reader on {cpus} CPUs and {gpus} GPUs"
            )
        return Pool(size, each, float(on_gpu), max(1, round(cpus / size)))

    def readers(self, pool: Pool) -> int:
        """Return the number of readers that run beside a pool."""
        return max(1, int(self.nodes * self.cpus / pool.num_cpus) - pool.size)


@dataclass(frozen=True)
class Prices:
    """Prices in the user's currency; None is not given.

    ``requests`` are of 1,000 requests that write, and of 1,000 that read.
    """

    cpu_hour: float | None = None
    gpu_hour: float | None = None
    gigabyte_month: float | None = None
    requests: tuple[float, float] | None = None

    def of(
        self, cluster: Cluster, seconds: float, stored: float, writes: float, reads: float
    ) -> dict[str, float]:
        """Return the cost of a job by kind; machines are paid for while it runs."""
        hours = seconds / 3600 * cluster.nodes
        costs = {}
        if self.cpu_hour is not None:
            costs["cpus"] = hours * cluster.cpus * self.cpu_hour
        if self.gpu_hour is not None:
            costs["gpus"] = hours * cluster.gpus * self.gpu_hour
        if self.gigabyte_month is not None:
            costs["storage_month"] = stored / GIGABYTE * self.gigabyte_month
        if self.requests is not None:
            costs["requests"] = (writes * self.requests[0] + reads * self.requests[1]) / 1000
        return costs
