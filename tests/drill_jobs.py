"""A drill over all jobs: kills of the driver and outages of S3 and MLflow, then the same bytes.

    python tests/drill_jobs.py --seed 0

Each job runs undisturbed; then with its driver killed at random, each time with the same command;
then while S3, which holds its input and output, stops for some seconds; then while the MLflow
server is killed and started again. A table says how each ended, and whether its files are those of
the undisturbed run.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.update(RAY_AUTH_MODE="disabled")
NETWORK = "--backbone resnet18 --stem half --epochs 2 --batch-size 16 --num-workers 1".split()
# For each job: its flags without --output, and the files that must be the same. {0} is the folder
# of the outputs of the jobs before, {1} a local folder of this output alone. Networks differ in
# their last bits where a training resumes.
JOBS = {
    "build_manifold": ("--input real={0}/reals", "shard-*/*"),
    "compute_artifacts": (
        "--input real={0}/reals stripes={0}/stripes --manifold {0}/build_manifold",
        "t*/*.parquet",
    ),
    "train_attribution": (f"--input {{0}}/compute_artifacts {' '.join(NETWORK)}", "seen.parquet"),
    "evaluate": ("--input {0}/compute_artifacts --model {0}/train_attribution", "scores/*"),
    "evaluate --robustness": (
        "--input real={0}/reals stripes={0}/stripes --model {0}/train_attribution --robustness "
        "--levels jpeg:50",
        "robustness.csv",
    ),
    "fuse": ("{0}/train_attribution {0}/train_attribution", "weights.pt"),
    "extend": (
        "{0}/train_attribution --add columns={0}/columns",
        "seen.parquet",
    ),
    "attribute": ("--input {0}/crawl --model {0}/train_attribution", "[aq]*/*.parquet"),
    "pretrain_embedding": (f"--input real={{0}}/reals {' '.join(NETWORK)}", "quarantine/*"),
    "build_benchmark": (
        "--real {0}/reals --recipes tiny --weights {1} --manifold-images 40 --train-images 20 "
        "--validation-images 10 --test-images 20",
        "*.tar.gz",
    ),
    "verify": ("{0}/build_manifold {0}/compute_artifacts", "certificate.json"),
    "audit": ("--input real={0}/reals stripes={0}/stripes --rows 200", "audit.md"),
    "normalize": ("--input crawl={0}/crawl --image-size 24", "[iq]*/*"),
    # Artifacts of two spaces; of its trainings only the end is compared, as above.
    "sweep": ("--config {1}.yaml", "cache/*/t*/*.parquet"),
}
SWEEP = """
input: ["real={0}/reals", "stripes={0}/stripes"]
reals: ["real={0}/columns"]
sampler: grid
fixed: {{backbone: resnet18, stem: half, epochs: 1, batch_size: 16, patience: 0}}
search: {{space: [rgb, freq]}}
"""
# Jobs that write into the output of another job.
INTO = {"verify": "compute_artifacts"}
ENDS = 600  # seconds that any start of a job may take


class Stage:
    """Where the drill works: a folder on S3, servers, and how jobs are started."""

    def __init__(self, folder: Path, bucket: str, weed: int, seed: int) -> None:
        self.folder, self.root, self.weed = folder, f"{bucket}/drill", weed
        self.random = random.Random(seed)
        self.mlflow: subprocess.Popen | None = None

    def start(self, job: str, output: str) -> subprocess.Popen:
        """Start a job; its lines go to a file."""
        name = output.rpartition("/")[2]
        local = self.folder / f"{name}-local"
        if job == "sweep":
            Path(f"{local}.yaml").write_text(SWEEP.format(self.root))
        flags = JOBS[job][0].format(self.root, local).split()
        flags += [] if job in INTO else ["--output", output]
        log = (self.folder / f"{name}.log").open("ab")
        command = [sys.executable, "-m", "manifpt", job.split()[0], *flags]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def files(self, job: str, output: str) -> dict[str, str]:
        """Return the hashes of the files that must be the same."""
        from fnmatch import fnmatch

        from manifpt import storage

        found = [uri for uri, _ in storage.files_under(output)]
        inside = {uri: uri[len(output) + 1 :] for uri in found}
        data = {
            path: storage.read_bytes(uri)
            for uri, path in inside.items()
            if fnmatch(path, JOBS[job][1])
        }
        for path in [path for path in data if path == "certificate.json"]:
            # It says when it was written, and how long that took.
            untimed = json.loads(data[path]) | {"seconds": 0, "written": ""}
            data[path] = storage.json_bytes(untimed)
        return {path: hashlib.sha256(one).hexdigest() for path, one in data.items()}

    def forget(self, job: str, output: str) -> None:
        """Remove the files that an earlier run of a job has left in an output of another job."""
        from manifpt import storage

        for path in self.files(job, output) if job in INTO else ():
            storage.remove_file(f"{output}/{path}")

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """Serve MLflow, and let jobs know."""
        from manifpt.throughput.seaweed import free_ports

        self.port = free_ports(1)[0]
        self.serve()
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{self.port}"
        try:
            yield
        finally:
            self.stop()

    def serve(self) -> None:
        import urllib.request

        store = f"sqlite:///{self.folder}/mlflow.db"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port)]
        command += ["--backend-store-uri", store, "--workers", "1"]
        self.mlflow = subprocess.Popen(
            command, cwd=self.folder, stdout=-3, stderr=-3, start_new_session=True
        )
        for _ in range(360):
            time.sleep(0.5)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1)
            except OSError:
                continue
            return
        raise TimeoutError("the MLflow server does not start")

    def stop(self) -> None:
        if self.mlflow is not None:
            os.killpg(self.mlflow.pid, signal.SIGKILL)
            self.mlflow.wait()

    def run_of(self, job: str) -> str:
        """Return how MLflow says that the last run of a job ended."""
        from mlflow import MlflowClient

        client = MlflowClient()
        experiments = [e.experiment_id for e in client.search_experiments()]
        for _ in range(30):
            of_job = f"tags.`manifpt.job` = '{job.split()[0]}'"
            last = client.search_runs(experiments, of_job, max_results=1)
            if last and last[0].info.status != "RUNNING":
                break
            time.sleep(1)
        return str(last[0].info.status) if last else "none"


def undisturbed(stage: Stage, job: str, output: str) -> tuple[float, int]:
    started = time.monotonic()
    code = stage.start(job, output).wait(timeout=ENDS)
    return time.monotonic() - started, code


def killed(stage: Stage, job: str, output: str, seconds: float, kills: int = 2) -> str:
    """Kill the driver a few times, then let it end."""
    for _ in range(kills):
        driver = stage.start(job, output)
        try:
            driver.wait(timeout=stage.random.uniform(0.4, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            driver.kill()
            driver.wait()
    return f"exit {stage.start(job, output).wait(timeout=ENDS)}"


def without_s3(stage: Stage, job: str, output: str, seconds: float, away: float = 20) -> str:
    """Stop the S3 server in the middle for some seconds."""
    driver = stage.start(job, output)
    time.sleep(stage.random.uniform(0.3, 0.8) * seconds)
    os.kill(stage.weed, signal.SIGSTOP)
    time.sleep(away)
    os.kill(stage.weed, signal.SIGCONT)
    return f"exit {driver.wait(timeout=ENDS)}"


def without_mlflow(stage: Stage, job: str, output: str, seconds: float) -> str:
    """Kill the MLflow server in the middle, and start it again before the end."""
    driver = stage.start(job, output)
    time.sleep(stage.random.uniform(0.2, 0.6) * seconds)
    stage.stop()
    time.sleep(3)
    stage.serve()
    return f"exit {driver.wait(timeout=ENDS)}, run {stage.run_of(job)}"


FAULTS = {"driver killed twice": killed, "S3 stopped, 20 s": without_s3,
          "MLflow killed": without_mlflow}  # fmt: skip


def drill(stage: Stage, jobs: list[str]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    yield f"| job | undisturbed | {' | '.join(FAULTS)} | files compared |"
    yield "|---" * (len(FAULTS) + 3) + "|"
    for job in jobs:
        place = f"{stage.root}/{INTO.get(job, job.replace(' --', '-'))}"
        seconds, code = undisturbed(stage, job, place)
        expected = stage.files(job, place)
        cells = []
        for name, fault in FAULTS.items():
            output = place if job in INTO else f"{place}-{name.partition(' ')[0]}"
            stage.forget(job, output)
            ended = fault(stage, job, output, seconds)
            same = "the same files" if stage.files(job, output) == expected else "OTHER FILES"
            cells.append(f"{ended}, {same}")
        yield f"| {job} | {seconds:.0f} s, exit {code} | {' | '.join(cells)} | {len(expected)} |"


def main() -> None:
    """Run the drill and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--folder", help="where to work; kept if given")
    given = parser.parse_args()
    from conftest import write_folder
    from handmade import tars

    from manifpt import storage
    from manifpt.throughput.seaweed import s3_server

    folder = Path(given.folder or tempfile.mkdtemp(prefix="drill-"))
    kinds = {"reals": "real", "stripes": "stripes", "columns": "blocks"}
    for name, kind in kinds.items():
        write_folder(folder / name, kind, range(1000, 1120))
    tars(folder / "crawl", 6, 40)
    (folder / "weed").mkdir(parents=True, exist_ok=True)
    try:
        with s3_server(folder / "weed", "drill", "drill-secret") as bucket:
            weed = subprocess.check_output(["pgrep", "-P", str(os.getpid()), "weed"], text=True)
            stage = Stage(folder, bucket, int(weed.split()[0]), given.seed)
            for name in (*kinds, "crawl"):
                for path in (folder / name).iterdir():
                    storage.write_bytes(f"{stage.root}/{name}/{path.name}", path.read_bytes())
            with stage.tracked():
                for line in drill(stage, given.jobs):
                    print(line, flush=True)
    finally:
        if not given.folder:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
