"""A Ray cluster on this machine: a head without CPUs, and workers with logical CPUs and GPUs.

    python -m cluster.local --nodes 3
    python -m cluster.local --nodes 3 --cpus-per-node 4 --autoscale

prints how to use it and runs until Ctrl-C, which ends all of its processes. With ``--autoscale``
workers start when a job asks for them, at most ``--nodes``, and go when they are idle.
"""

import argparse
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

from manifpt.engine import session
from manifpt.errors import ManifptError
from manifpt.throughput.seaweed import free_ports

ROOT, BIN = Path(__file__).parents[1], Path(sys.executable).parent
HOST = "127.0.0.1"
START_SECONDS, STARTS = 300, 4
STORE_BYTES = 200 * 2**20  # of a node's object store
STARTED = "Ray runtime started"
HEAD_KIND = "ray.head.default"  # by which the provider of fake nodes knows it


@dataclass(frozen=True)
class ClusterShape:
    """The nodes of a cluster: ``nodes`` workers, or at most that number with ``autoscale``."""

    nodes: int = 3
    cpus: int = 2
    gpus: int = 0
    autoscale: bool = False
    idle_minutes: float = 1.0
    dashboard: bool = True  # which `ray job submit` needs

    @property
    def variables(self) -> dict[str, str]:
        """Environment of jobs: how far the cluster may grow, and that its GPUs are logical."""
        logical = {"MANIFPT_LOGICAL_GPUS": "1"} if self.gpus else {}
        if not self.autoscale:
            return logical
        most = {"MANIFPT_MAX_CPUS": self.nodes * self.cpus}
        most |= {"MANIFPT_MAX_GPUS": self.nodes * self.gpus}
        return logical | {name: str(value) for name, value in most.items()}


@dataclass
class LocalCluster:
    """A cluster that runs: its addresses, the environment of its users, its processes."""

    shape: ClusterShape
    folder: Path
    address: str
    dashboard: str
    env: dict[str, str]
    head: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def join(self) -> None:
        """Start one more worker, which becomes the last of ``workers``."""
        having = [f"--num-cpus={self.shape.cpus}", f"--num-gpus={self.shape.gpus}"]
        # Nodes that share a folder overwrite each other's copy of a submitted job's code.
        having.append(f"--temp-dir={self.folder}/{len(self.workers)}")
        log = self.folder / f"worker-{len(self.workers)}.log"
        self.workers.append(_ray_start([f"--address={self.address}", *having], self.env, log))


@contextmanager
def local_cluster(shape: ClusterShape) -> Iterator[LocalCluster]:
    """Run a cluster while the block lasts; its log is in the error if it doesn't start."""
    # Not the usual folder for temporary files: the paths of sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port, dashboard, client = free_ports(3)
    mine = {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_TMPDIR": str(folder)}
    # Nodes run this code, not one that is installed.
    mine["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = session.INHERITED | os.environ | mine | shape.variables
    env.setdefault("RAY_AUTH_MODE", "token")
    env.pop("RAY_ADDRESS", None)
    command = [
        "--head", f"--port={port}", "--num-cpus=0", "--num-gpus=0",
        f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--temp-dir={folder}", f"--include-dashboard={shape.dashboard}",
    ]  # fmt: skip
    head_env = env
    if shape.autoscale:
        file = folder / "autoscaler.json"
        file.write_text(json.dumps(_autoscaler(shape, f"{HOST}:{port}")))
        command.append(f"--autoscaling-config={file}")
        head_env = env | _fake_head()
    made = LocalCluster(shape, folder, f"{HOST}:{port}", f"http://{HOST}:{dashboard}", env)
    try:
        if env["RAY_AUTH_MODE"] == "token":
            token = [BIN / "ray", "get-auth-token", "--generate"]
            subprocess.run(token, env=env, stdout=subprocess.DEVNULL, check=True, timeout=60)
        made.head = _ray_start(command, head_env, folder / "head.log")
        if shape.dashboard:
            _wait(partial(_speaks, f"{made.dashboard}/api/version"))
        for _ in range(0 if shape.autoscale else shape.nodes):
            made.join()
        yield made
    finally:
        kill([*([made.head] if made.head else []), *made.workers])
        shutil.rmtree(folder, ignore_errors=True)


def _ray_start(flags: Sequence[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a node and wait until it is up. Ray gives it 30 s, so a busy machine tries again."""
    # Nodes of one machine would meet at the agents' usual ports.
    listen, grpc, runtime, metrics = free_ports(4)
    command = [
        BIN / "ray", "start", "--block", "--disable-usage-stats", f"--node-ip-address={HOST}",
        f"--dashboard-agent-listen-port={listen}", f"--dashboard-agent-grpc-port={grpc}",
        f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}",
        f"--object-store-memory={STORE_BYTES}", *flags,
    ]  # fmt: skip
    for _ in range(STARTS):
        with log.open("wb") as file:
            node = subprocess.Popen(
                command, env=env, stdout=file, stderr=file, start_new_session=True
            )
        try:
            _wait(partial(_settled, node, log))
            if node.poll() is None:
                return node
        except BaseException:
            kill([node])
            raise
    raise ManifptError(
        f"a node did not start in {STARTS} tries; its log: {log.read_text()[-1500:]}"
    )


def _autoscaler(shape: ClusterShape, address: str) -> dict[str, object]:
    """Return the configuration of Ray's own provider of nodes that are processes."""
    resources = {"CPU": shape.cpus, "GPU": shape.gpus, "object_store_memory": STORE_BYTES}
    resources["memory"] = _memory()
    kinds = {
        HEAD_KIND: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {name: value for name, value in resources.items() if value},
            "node_config": {},
            "min_workers": 0,
            "max_workers": shape.nodes,
        },
    }
    return {
        "cluster_name": "local",
        "max_workers": shape.nodes,
        "idle_timeout_minutes": shape.idle_minutes,
        "provider": {
            # Its own name would read a file that Ray's package lacks.
            "type": "external",
            "module": "cluster.provider.ProcessProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": _fake_head()["RAY_CLOUD_INSTANCE_ID"],
        },
        "available_node_types": kinds,
        "head_node_type": HEAD_KIND,
        "auth": {}, "docker": {}, "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
        "worker_start_ray_commands": [], "file_mounts": {}, "cluster_synced_files": [],
        "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        "upscaling_speed": 1.0,
    }  # fmt: skip


def _memory() -> int:
    """Return at least the bytes that Ray finds for each node: without, none starts for memory."""
    return int(0.7 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _fake_head() -> dict[str, str]:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    return {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` and KubeRay do
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": HEAD_KIND,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }


def _settled(node: subprocess.Popen[bytes], log: Path) -> bool:
    return STARTED in log.read_text() or node.poll() is not None


def _speaks(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5)  # noqa: S310 (http, on loopback)
    except urllib.error.HTTPError:  # without the token it answers, and refuses
        return True
    except OSError:
        return False
    return True


def _wait(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > until:
            raise ManifptError(f"a node did not start in {START_SECONDS} s")
        time.sleep(0.5)


def kill(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill all processes of nodes: Ray's are not all in the group of their parent."""
    import ray  # noqa: F401 (puts its own psutil in reach)

    psutil = importlib.import_module("psutil")
    found = []
    for process in started:
        with suppress(psutil.NoSuchProcess):
            found += [one := psutil.Process(process.pid), *one.children(recursive=True)]
    for one in found:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    for process in started:
        process.wait(timeout=30)


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run a cluster as a command, until it is stopped."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=ClusterShape.nodes, help="worker nodes")
    parser.add_argument(
        "--cpus-per-node", type=int, default=ClusterShape.cpus, help="logical CPUs of each"
    )
    parser.add_argument(
        "--gpus-per-node", type=int, default=ClusterShape.gpus, help="logical GPUs of each"
    )
    parser.add_argument("--autoscale", action="store_true", help="start them when they are needed")
    parser.add_argument(
        "--idle-minutes",
        type=float,
        default=ClusterShape.idle_minutes,
        help="--autoscale: then they go",
    )
    given = parser.parse_args(argv)
    shape = ClusterShape(
        given.nodes, given.cpus_per_node, given.gpus_per_node, given.autoscale, given.idle_minutes
    )
    signal.signal(signal.SIGTERM, _stop)
    try:
        with local_cluster(shape) as cluster:
            print(_how_to_use(cluster), flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 0
    except ManifptError as error:
        print(f"cluster.local: {error}", file=sys.stderr)
        return 2


def _how_to_use(cluster: LocalCluster) -> str:
    names = ("RAY_AUTH_MODE", "MANIFPT_MAX_CPUS", "MANIFPT_MAX_GPUS", "MANIFPT_LOGICAL_GPUS")
    given = " ".join(f"{name}={cluster.env[name]}" for name in names if name in cluster.env)
    return f"""\
Ray at {cluster.address}, dashboard {cluster.dashboard}; Ctrl-C ends it
{given} RAY_ADDRESS={cluster.address} python -m jobs.quickstart
{given} ray job submit --address {cluster.dashboard} --working-dir . -- python -m jobs.quickstart"""


if __name__ == "__main__":
    sys.exit(main())
