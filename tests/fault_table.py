"""Faults x jobs: what is killed or stops, and whether each job ends as an undisturbed one does.

    python -m tests.fault_table --jobs build_manifold attribute --faults actor node

Each job runs on a cluster of three nodes on this machine, from S3 to S3, with an MLflow server:
once undisturbed, then once a fault, each time into another output. A cell has the seconds of all
starts together, and "ok" if the last one exits 0, the files that no fault may change are the same,
no MLflow run is left RUNNING, and no process of the job is left. "ended first" means that the job
was done before the fault could meet it.
"""

import argparse
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import ray  # noqa: F401 (puts its own psutil in reach)
from mlflow import MlflowClient

from cluster.local import ROOT, ClusterShape, LocalCluster, kill, local_cluster
from manifpt import storage
from manifpt.throughput.seaweed import s3_server
from tests import from_zero
from tests.mlflow_server import MlflowServer

psutil = importlib.import_module("psutil")

ACTORS = ("_Worker", "RayTrainWorker", "Trial", "Cache", "Holder")
# Processes of Ray's own that outlive a job.
RAYS = ("StatsActor", "Autoscaling", "StateActor", "JobSupervisor", "LocationTracker", "Agent")
END_SECONDS, LEFT_SECONDS, RUN_SECONDS, NODE_SECONDS = 900, 30, 60, 20


@dataclass
class Scene:
    """Where jobs run: the cluster, S3 and MLflow, and how they are started."""

    folder: Path
    root: str
    weed: int
    mlflow: MlflowServer
    away: float
    random: random.Random
    stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.commands = from_zero.commands(self.folder)
        config = self.folder / "sweep.yaml"
        config.write_text(config.read_text().replace(str(self.folder), self.root))
        for path in self.folder.rglob("*.png"):
            storage.write_bytes(f"{self.root}/{path.relative_to(self.folder)}", path.read_bytes())
        self.renew()

    def renew(self) -> None:
        """Start a new cluster in the place of the old one."""
        self.stack.close()
        self.cluster: LocalCluster = self.stack.enter_context(local_cluster(ClusterShape(3, 2)))

    def output(self, job: str) -> str:
        """Return the output of a job that runs undisturbed, which later jobs read."""
        flags = self.commands[job]
        return flags[flags.index("--output") + 1].replace(str(self.folder), self.root)

    def log(self, output: str) -> Path:
        """Return the file of the lines that the starts of a job print."""
        return self.folder / f"{output.rpartition('/')[2]}.log"

    def start(self, job: str, output: str) -> subprocess.Popen:
        """Start a job's command with this output; its lines go to a file."""
        module, *flags = self.commands[job]
        flags = [
            f if f.endswith(".yaml") else f.replace(str(self.folder), self.root) for f in flags
        ]
        flags[flags.index("--output") + 1] = output
        mine = {"RAY_ADDRESS": self.cluster.address, "MLFLOW_TRACKING_URI": self.mlflow.url}
        log = self.log(output).open("ab")
        return subprocess.Popen(
            [sys.executable, "-m", module, *flags],
            env=self.cluster.env | mine, cwd=ROOT, stdout=log, stderr=log,
        )  # fmt: skip

    def files(self, job: str, output: str) -> dict[str, str]:
        """Return the hashes of the files that must be the same, and what else must be."""
        found = [uri[len(output) + 1 :] for uri, _ in storage.files_under(output)]
        facts = {path: "" for path in found if path in {"manifest.json", "leaderboard.json"}}
        return facts | from_zero.same_files(job, output)


def working(cluster: LocalCluster, names: tuple[str, ...] = ()) -> list:
    """Return Ray's processes that work for a job now: actors of some names; without names, all."""
    found = []
    for node in cluster.workers:
        try:
            children = psutil.Process(node.pid).children(recursive=True)
        except psutil.Error:
            continue
        for process in children:
            title = title_of(process)
            busy = title.startswith("ray::") and not any(n in title for n in ("IDLE", *RAYS))
            if busy and (not names or any(name in title for name in names)):
                found.append(process)
    return found


def title_of(process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def tasks(cluster: LocalCluster) -> list:
    """Return processes that run a task, such as one that reads."""
    actors = set(working(cluster, ACTORS))
    return [p for p in working(cluster) if p not in actors and "(" in title_of(p)]


# Returns the exit codes of the last start, or None where the job ended before it was met.
Fault = Callable[[Scene, str, str, float], list[int] | None]


def ended(*drivers: subprocess.Popen) -> list[int]:
    """Wait for jobs; return their exit codes, that of one that hangs as 124."""
    codes = []
    for driver in drivers:
        try:
            codes.append(int(driver.wait(timeout=END_SECONDS)))
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
            codes.append(124)
    return codes


def killed(find: Callable[[LocalCluster], list]) -> Fault:
    """Return a fault: one of the processes that are found is killed as soon as there is one."""

    def fault(scene: Scene, job: str, output: str, _seconds: float) -> list[int] | None:
        driver = scene.start(job, output)
        while driver.poll() is None:
            time.sleep(0.02)
            with suppress(IndexError, psutil.NoSuchProcess):
                scene.random.choice(find(scene.cluster)).kill()
                return ended(driver)
        return [driver.returncode] if driver.returncode else None

    return fault


def midway(act: Callable[[Scene, subprocess.Popen], None]) -> Fault:
    """Return a fault soon after work has begun; a job whose driver dies is started again."""

    def fault(scene: Scene, job: str, output: str, seconds: float) -> list[int] | None:
        driver = scene.start(job, output)
        while driver.poll() is None and not working(scene.cluster):
            time.sleep(0.05)
        until = time.monotonic() + scene.random.uniform(0, 0.3) * seconds
        while driver.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        if driver.poll() is not None:
            return [driver.returncode] if driver.returncode else None
        act(scene, driver)
        return ended(scene.start(job, output) if driver.returncode == -signal.SIGKILL else driver)

    return fault


def lose_node(scene: Scene, _driver: subprocess.Popen) -> None:
    """Kill a node; another comes a while later, as with an autoscaler."""
    lost = scene.random.choice(scene.cluster.workers)
    kill([lost])
    scene.cluster.workers.remove(lost)
    time.sleep(NODE_SECONDS)
    scene.cluster.join()


def lose_driver(_scene: Scene, driver: subprocess.Popen) -> None:
    """Kill the driver."""
    driver.kill()
    driver.wait()


def lose_head(scene: Scene, driver: subprocess.Popen) -> None:
    """Kill the head, and the driver that ran on it; another cluster starts."""
    kill([scene.cluster.head] if scene.cluster.head else [])
    lose_driver(scene, driver)
    scene.renew()


def lose_mlflow(scene: Scene, _driver: subprocess.Popen) -> None:
    """Kill the MLflow server, and start it again a while later."""
    scene.mlflow.kill()
    time.sleep(scene.away)
    scene.mlflow.start()


def lose_s3(scene: Scene, _driver: subprocess.Popen) -> None:
    """Stop the S3 server for a while."""
    os.kill(scene.weed, signal.SIGSTOP)
    time.sleep(scene.away)
    os.kill(scene.weed, signal.SIGCONT)


def twice(scene: Scene, job: str, output: str, _seconds: float) -> list[int] | None:
    """Start the command two times at once: one ends with a line, or finds the output finished."""
    codes = ended(*(scene.start(job, output) for _ in range(2)))
    return [0] if 0 in codes and set(codes) <= {0, 2} else codes


FAULTS: dict[str, Fault] = {
    "worker": killed(tasks),
    "actor": killed(lambda cluster: working(cluster, ACTORS)),
    "node": midway(lose_node),
    "driver": midway(lose_driver),
    "head": midway(lose_head),
    "MLflow": midway(lose_mlflow),
    "S3": midway(lose_s3),
    "twice": twice,
}


def runs_since(mlflow: MlflowServer, began: float) -> list[str]:
    """Return how MLflow says that the runs since a time have ended, the last one first."""
    client = MlflowClient(mlflow.url)
    until = time.monotonic() + RUN_SECONDS
    while True:
        experiments = [e.experiment_id for e in client.search_experiments()]
        since = f"attributes.start_time >= {int(began * 1000)}"
        found = [str(run.info.status) for run in client.search_runs(experiments, since)]
        if "RUNNING" not in found or time.monotonic() > until:
            return found
        time.sleep(1)


def left(cluster: LocalCluster) -> list[str]:
    """Return the titles of processes that still work for a job, after some patience."""
    until = time.monotonic() + LEFT_SECONDS
    while (found := working(cluster)) and time.monotonic() < until:
        time.sleep(0.5)
    return sorted(map(title_of, found))


def cell(scene: Scene, job: str, fault: Fault, output: str, seconds: float) -> str:
    """Run a job with a fault; return what the table says."""
    began = time.time()
    codes = fault(scene, job, output, seconds)
    took = time.time() - began
    wrong = [f"exit {code}" for code in codes or [] if code]
    if scene.files(job, output) != scene.files(job, scene.output(job)):
        wrong.append("other files")
    statuses = runs_since(scene.mlflow, began)
    if "RUNNING" in statuses or "FINISHED" not in statuses:
        wrong.append(f"runs {' '.join(statuses)}")
    wrong += [f"left {title}" for title in left(scene.cluster)]
    if wrong:
        return f"WRONG, {took:.0f} s: {', '.join(wrong)}"
    return f"ended first, {took:.0f} s" if codes is None else f"ok, {took:.0f} s"


def table(scene: Scene, jobs: list[str], faults: list[str]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown; jobs that others read run undisturbed first."""
    yield f"| job | undisturbed | {' | '.join(faults)} | files compared |"
    yield "|---" * (len(faults) + 3) + "|"
    last = max(list(scene.commands).index(job) for job in jobs)
    for job in list(scene.commands)[: last + 1]:
        output = scene.output(job)
        began = time.monotonic()
        (code,) = ended(scene.start(job, output))
        seconds = time.monotonic() - began
        if code:
            raise RuntimeError(
                (scene.folder / f"{output.rpartition('/')[2]}.log").read_text()[-3000:]
            )
        if job in jobs:
            cells = [cell(scene, job, FAULTS[name], f"{output}-{name}", seconds) for name in faults]
            count = len(scene.files(job, output))
            yield f"| {job} | ok, {seconds:.0f} s | {' | '.join(cells)} | {count} |"


def main() -> int:
    """Print the table; return 1 if a cell is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = list(from_zero.SAME)
    parser.add_argument("--jobs", nargs="+", default=jobs, choices=jobs)
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--away", type=float, default=60, help="seconds without S3 or MLflow")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory(prefix="faults-") as made, ExitStack() as stack:
        folder, weed, runs = (Path(made, name) for name in ("images", "weed", "mlflow"))
        for path in (folder, weed, runs):
            path.mkdir()
        bucket = stack.enter_context(s3_server(weed, "faults", "faults-secret"))
        server = [p.pid for p in psutil.Process().children() if p.name() == "weed"]
        mlflow = MlflowServer(runs)
        stack.callback(mlflow.kill)
        mlflow.start()
        seed = random.Random(given.seed)
        scene = Scene(folder, f"{bucket}/faults", server[0], mlflow, given.away, seed)
        stack.callback(scene.stack.close)
        for line in table(scene, given.jobs, given.faults):
            print(line, flush=True)
            wrong = wrong or "WRONG" in line
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
