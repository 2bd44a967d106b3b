"""Every main job on a cluster that has no worker node until a job asks, and none a while after.

    python tests/from_zero.py [--jobs build_manifold attribute]

Prints a table, job | seconds | nodes | seconds until there is none again, as JSON lines.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
JOB_SECONDS, EMPTY_SECONDS = 1200, 300
NETWORK = ["--backbone", "resnet18", "--stem", "half", "--epochs", "2", "--batch-size", "16"]
SWEEP = {"backbone": "resnet18", "stem": "standard", "batch_size": 32, "patience": 0, "epochs": 2}
SMALL = ["--backbone", "resnet18", "--stem", "standard", "--projector-width", "64"]
SMALL += ["--epochs", "2", "--batch-size", "32"]


@dataclass
class Line:
    """A line of the table: how a job went."""

    job: str
    code: int
    seconds: float
    nodes: int
    empty_after: float
    said: str


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
                line = asdict(lines[-1])
                said = line.pop("said")
                print(json.dumps(line), flush=True)
                if line["code"]:
                    print(said[-3000:], file=sys.stderr, flush=True)
        finally:
            ray.shutdown()
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="*", help="of these alone; those before them must be done")
    parser.add_argument("--folder", help="where to work; kept if given")
    given = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="zero-") as made:
        here = Path(given.folder or made)
        here.mkdir(exist_ok=True)
        sys.exit(any(line.code for line in from_zero(here, given.jobs)))
