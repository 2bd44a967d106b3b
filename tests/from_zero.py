"""Every main job on a cluster that has no worker node until a job asks, and none a while after.

    python tests/from_zero.py [--jobs build_manifold attribute]

Prints a table as JSON lines: job, seconds, most nodes, seconds until there is none again, and the
number of files that are the same as those of a cluster whose nodes neither come nor go.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import yaml

from manifpt import storage

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
JOB_SECONDS, EMPTY_SECONDS = 1200, 300
NETWORK = ["--backbone", "resnet18", "--stem", "half", "--epochs", "2", "--batch-size", "16"]
SWEEP = {"backbone": "resnet18", "stem": "standard", "batch_size": 32, "patience": 0, "epochs": 2}
SMALL = ["--backbone", "resnet18", "--stem", "standard", "--projector-width", "64"]
SMALL += ["--epochs", "2", "--batch-size", "32"]
# The files that must be the same, byte for byte, wherever and however often a job is started.
# Weights differ in their last bits where a training resumes, and a sweep's trials depend on the
# order in which they end.
SAME = {
    "build_manifold": "shard-*/*",
    "compute_artifacts": "t*/*.parquet",
    "train_attribution": "seen.parquet",
    "evaluate": "scores/*",
    "attribute": "[aqd]*/*.parquet",
    "pretrain_embedding": "quarantine/*",
    "sweep": "",
}


@dataclass
class Line:
    """A line of the table: how a job went."""

    job: str
    code: int
    seconds: float
    nodes: int
    empty_after: float
    said: str
    same_files: int = 0


def same_files(job: str, output: str) -> dict[str, str]:
    """Return the hashes of an output's files that must be the same, by their paths."""
    found = {uri[len(output) + 1 :]: uri for uri, _ in storage.files_under(output)}
    paths = [path for path in found if fnmatch(path, SAME[job])]
    return {p: hashlib.sha256(storage.read_bytes(found[p])).hexdigest() for p in paths}


def commands(place: Path) -> dict[str, list[str]]:
    """Write tiny inputs; return each job's command, in the order of the pipeline."""
    from conftest import labelled, write_folder

    write_folder(place / "manifold", "real", range(60))
    for kind in ("real", "stripes", "blocks"):
        write_folder(place / "labelled" / kind, kind, range(1000, 1060))
    sweep = {"input": [f"{place}/labelled"], "reals": [f"{place}/manifold"], "fixed": SWEEP}
    search = {"search": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}}
    (place / "sweep.yaml").write_text(yaml.safe_dump(sweep | search))
    reals, output = ["--input", f"real={place}/manifold"], {n: f"{place}/{n}" for n in "mateps"}
    classes, training = ["--input", *labelled(place)], ["--input", output["a"], *NETWORK]
    attribute = ["--input", f"{place}/labelled", "--model", output["t"]]
    jobs = {
        "build_manifold": [*reals, "--shards", "3", "--output", output["m"]],
        "compute_artifacts": [*classes, "--manifold", output["m"], "--output", output["a"]],
        "train_attribution": [*training, "--num-workers", "3", "--output", output["t"]],
        "evaluate": ["--input", output["a"], "--model", output["t"], "--output", output["e"]],
        "attribute": [*attribute, "--output", f"{place}/verdicts"],
        "pretrain_embedding": [*reals, *SMALL, "--num-workers", "2", "--output", output["p"]],
    }
    found = {name: [f"jobs.{name}", *flags] for name, flags in jobs.items()}
    flags = ["--config", f"{place}/sweep.yaml", "--trials", "2", "--output", output["s"]]
    return found | {"sweep": ["tuning.sweep", *flags]}


def workers() -> int:
    """Return how many worker nodes are up."""
    import ray

    return sum(bool(n["Alive"] and n["Resources"].get("CPU")) for n in ray.nodes())


def empty() -> float:
    """Wait until there is no worker node; return the seconds that it took."""
    started = time.monotonic()
    while workers():
        if time.monotonic() - started > EMPTY_SECONDS:
            raise TimeoutError(f"{workers()} nodes are up {EMPTY_SECONDS} s after the job")
        time.sleep(0.5)
    return time.monotonic() - started


def run(name: str, command: list[str], env: dict[str, str], folder: Path) -> Line:
    """Run a job from no node until there is none again; return its line."""
    empty()
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            most.append(workers())

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    started = time.monotonic()
    job = subprocess.run(
        [sys.executable, "-m", *command], env=env, cwd=folder, timeout=JOB_SECONDS,
        capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - started
    done.set()
    watching.join()
    return Line(name, job.returncode, round(seconds), max(most), round(empty()), job.stderr)


def from_zero(place: Path, only: list[str] | None = None) -> list[Line]:
    """Run the jobs on a local cluster that scales; return the table."""
    import ray

    from cluster.local import ClusterShape, local_cluster

    found = commands(place)
    lines = []
    with local_cluster(
        ClusterShape(3, 2, autoscale=True, idle_minutes=0.5, dashboard=False)
    ) as cluster:
        mine = {"RAY_ADDRESS": cluster.address}
        mine["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            for name in only or found:
                lines.append(run(name, found[name], cluster.env | mine, place))
                print(name, lines[-1].seconds, "s", file=sys.stderr, flush=True)
                if lines[-1].code:
                    print(lines[-1].said[-3000:], file=sys.stderr, flush=True)
        finally:
            ray.shutdown()
    return lines


def compared(place: Path, lines: list[Line]) -> list[Line]:
    """Run the jobs of lines on a cluster of one node; return the lines with their equal files."""
    from cluster.local import ClusterShape, local_cluster

    found, out = commands(place), []
    with local_cluster(ClusterShape(1, 4, dashboard=False)) as cluster:
        mine = {"RAY_ADDRESS": cluster.address}
        mine["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
        for line in lines:
            command = list(found[line.job])
            at = command.index("--output") + 1
            scaled, command[at] = command[at], f"{command[at]}-fixed"
            subprocess.run(
                [sys.executable, "-m", *command], env=cluster.env | mine, cwd=place,
                timeout=JOB_SECONDS, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            files = same_files(line.job, command[at])
            if files != same_files(line.job, scaled):
                raise AssertionError(f"{line.job}: {scaled} and {command[at]} differ")
            out.append(replace(line, same_files=len(files)))
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="*", help="of these alone; those before them must be done")
    parser.add_argument("--folder", help="where to work; kept if given")
    given = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="zero-") as made:
        here = Path(given.folder or made)
        here.mkdir(exist_ok=True)
        lines = from_zero(here, given.jobs)
        failed = any(line.code for line in lines)
        for line in lines if failed else compared(here, lines):
            shown = asdict(line)
            shown.pop("said")
            print(json.dumps(shown), flush=True)
        sys.exit(failed)
