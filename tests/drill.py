"""A drill on a cluster of three nodes on this machine: kills at random, then the same bytes.

    python tests/drill.py --kills 20 --seed 0

Attributes 5,000 images undisturbed, then again while actors, reading tasks, nodes and the driver
are killed, each time with the same command, and prints what was killed and whether the tables of
both are the same, as JSON.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="120")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
KINDS = ("actor", "worker", "node", "driver")
NODE = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
# Small enough that there are records between all kills.
TAR_IMAGES = 20
# Seconds without a new record after which the next kill comes all the same.
PATIENCE = 90


class Drill:
    """The cluster, the job, and what is killed of them."""

    def __init__(self, folder: Path, model: str, images: Path, seed: int) -> None:
        from ray.cluster_utils import Cluster

        self.random, self.folder = random.Random(seed), folder
        self.command = [sys.executable, "-m", "manifpt", "attribute", "--input", str(images)]
        self.command += ["--model", model, "--num-actors", "2", "--output"]
        self.cluster = Cluster(True, head_node_args={"num_cpus": 1, "object_store_memory": 2**28})
        self.nodes = [self.cluster.add_node(**NODE) for _ in range(2)]
        self.starts = 0

    def start(self, output: Path) -> subprocess.Popen:
        """Start the job; its lines go to a file."""
        self.starts += 1
        paths = {"RAY_ADDRESS": self.cluster.address, "PYTHONPATH": str(ROOT)}
        paths["MLFLOW_TRACKING_URI"] = f"sqlite:///{self.folder}/mlflow.db"
        log = (self.folder / f"{output.name}.log").open("ab")
        env = os.environ | paths
        return subprocess.Popen(
            [*self.command, str(output)], env=env, cwd=self.folder, stdout=log, stderr=log
        )

    def kill(self, kind: str, driver: subprocess.Popen) -> bool:
        """Kill one of a kind; tell whether there was one."""
        if kind == "driver":
            driver.kill()
            driver.wait()
            return True
        if kind == "node":
            number = self.random.randrange(2)
            self.cluster.remove_node(self.nodes[number], allow_graceful=False)
            self.nodes[number] = self.cluster.add_node(**NODE)
            return True
        found = processes("_Worker" if kind == "actor" else "_Reader")
        if found:
            self.random.choice(found).kill()
        return bool(found)

    def disturbed(self, output: Path, kills: int) -> Counter[str]:
        """Run the job to its end, killing something after each few records; count the kills."""
        done: Counter[str] = Counter()
        planned = [KINDS[n % len(KINDS)] for n in range(kills)]
        self.random.shuffle(planned)
        driver = self.start(output)
        seen, since = 0, time.monotonic()
        while True:
            time.sleep(0.02)
            if driver.poll() == 0:
                break
            if driver.returncode is not None:
                if self.starts > kills + 10:
                    raise RuntimeError("the job does not get on; see its log")
                driver = self.start(output)
            records = count(output)
            if planned and (records >= seen + 2 or time.monotonic() - since > PATIENCE):
                if self.kill(planned[-1], driver):
                    done[planned.pop()] += 1
                seen, since = count(output), time.monotonic()
        if planned:
            raise RuntimeError(f"finished before its kills: {planned} are left")
        return done


def processes(name: str) -> list:
    """Return this drill's processes of Ray that work on a stage."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(name in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def count(output: Path) -> int:
    folder = output / "_records"
    return len(list(folder.glob("*.json"))) if folder.exists() else 0


def tables(output: Path) -> dict[str, str]:
    """Return the hash of every file of the tables."""
    from test_pipeline import hashes

    return hashes(output, "attributions", "quarantine")


def drill(folder: Path, images: int, kills: int, seed: int) -> dict:
    """Make images and a model, run undisturbed and disturbed, and compare."""
    import handmade

    model = handmade.attributor(folder / "model")
    source = handmade.tars(folder / "images", images // TAR_IMAGES, TAR_IMAGES)
    stage = Drill(folder, model, source, seed)
    try:
        started = time.monotonic()
        if stage.start(folder / "calm").wait():
            raise RuntimeError((folder / "calm.log").read_text()[-2000:])
        calm = time.monotonic() - started
        started, stage.starts = time.monotonic(), 0
        done = stage.disturbed(folder / "disturbed", kills)
        seconds = time.monotonic() - started
    finally:
        stage.cluster.shutdown()
    one, two = tables(folder / "calm"), tables(folder / "disturbed")
    summary = json.loads((folder / "disturbed" / "summary.json").read_text())
    left = [p.name for p in (folder / "disturbed").rglob("*.partial")]
    return {
        "kills": dict(done),
        "starts": stage.starts,
        "seconds_calm": round(calm, 1),
        "seconds_disturbed": round(seconds, 1),
        **{name: summary[name] for name in ("rows_in", "ok", "quarantined")},
        "files": len(one),
        "identical": one == two,
        "left_over": left,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to work; kept if given")
    given = parser.parse_args()
    place = Path(given.folder or tempfile.mkdtemp(prefix="drill-"))
    try:
        print(json.dumps(drill(place, given.images, given.kills, given.seed), indent=1))
    finally:
        if not given.folder:
            shutil.rmtree(place, ignore_errors=True)
