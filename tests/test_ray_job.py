"""Jobs by `ray job submit` on a real head node, from S3 to S3, recorded by an MLflow server."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient

from manifpt import storage
from manifpt.throughput.seaweed import free_ports

pytestmark = [pytest.mark.long, pytest.mark.ray]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: int = 90) -> None:
    for _ in range(seconds * 2):
        time.sleep(0.5)
        try:
            urllib.request.urlopen(url, timeout=5)  # an answer of any kind
            return
        except OSError:
            if process.poll() is not None:
                break
    pytest.fail(f"{url}: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def mlflow_server(s3, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow-server")
    (port,) = free_ports(1)
    store = ["--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", f"{s3}/ml"]
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = folder / "log.txt"
    with log.open("wb") as file:
        command = [BIN / "mlflow", "server", *store, *place]
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    wait_for(f"http://127.0.0.1:{port}/health", process, log)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


RECORDED = """
from manifpt import tracking
with tracking.run("secret", {"input": ("https://host/a?sig=canary-token-95",)}) as run:
    run.tags({"place": "https://me:canary-pass-77@host"})
    run.document("summary.json", {"given": "https://host/a?sig=canary-token-95"})
    run.child("trial", {"input": "https://host/a?sig=canary-token-95"}).end("FINISHED")
print(run.id)
"""


@pytest.mark.slow
def test_the_password_of_a_server_and_signatures_are_nowhere(mlflow_server, tmp_path):
    """MLflow prints where a run is when it ends, with the password that it was given."""

    def run(uri: str) -> subprocess.CompletedProcess:
        env = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}
        return subprocess.run(
            [sys.executable, "-c", RECORDED],
            capture_output=True, text=True, cwd=tmp_path, timeout=100, env=env,
        )  # fmt: skip

    done = run(mlflow_server.replace("://", "://me:canary-pass-77@"))
    assert done.returncode == 0, done.stderr
    assert "canary" not in done.stdout + done.stderr
    client = MlflowClient(mlflow_server)
    found = client.get_run(done.stdout.split()[-1])
    children = client.search_runs(
        [found.info.experiment_id], f"tags.`mlflow.parentRunId` = '{found.info.run_id}'"
    )
    assert len(children) == 1
    for one in (found, *children):
        assert "canary" not in json.dumps(one.to_dictionary())
    path = client.download_artifacts(found.info.run_id, "summary.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == {"given": "https://host/a"}
    (port,) = free_ports(1)
    for uri in ("http://me:canary-pass-77@127.0.0.1:{}", "http://127.0.0.1:{}/?token=canary-token"):
        failed = run(uri.format(port))
        assert failed.returncode == 1  # the edge of a job makes it one line
        assert "ManifptError: MLFLOW_TRACKING_URI http://127.0.0.1" in failed.stderr
        assert "canary" not in failed.stdout + failed.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def cluster(s3, mlflow_server, tmp_path_factory):
    """A head node of its own; Ray's sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    port, dashboard, agent, client, metrics, grpc, runtime = free_ports(7)
    env = os.environ | {"RAY_AUTH_MODE": "disabled", "MLFLOW_TRACKING_URI": mlflow_server}
    env["PATH"] = f"{BIN}:{env['PATH']}"  # whose `python` the jobs run
    command = [
        BIN / "ray", "start", "--head", "--block", f"--port={port}", "--num-cpus=3",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={grpc}", f"--runtime-env-agent-port={runtime}",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    log = folder / "log.txt"
    with log.open("wb") as file:
        head = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    wait_for(f"http://127.0.0.1:{dashboard}/api/version", head, log)
    yield f"http://127.0.0.1:{dashboard}", env
    os.killpg(head.pid, signal.SIGKILL)
    head.wait(timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


def submit(cluster, name: str, *command: str, seconds: int = 200) -> subprocess.CompletedProcess:
    address, env = cluster
    flags = ["--address", address, "--submission-id", name, "--working-dir", "."]
    return subprocess.run(
        [BIN / "ray", "job", "submit", *flags, "--", "python", "-m", *command],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def driver_exit_code(cluster, name: str) -> int:
    with urllib.request.urlopen(f"{cluster[0]}/api/jobs/{name}", timeout=10) as answer:
        return json.load(answer)["driver_exit_code"]


@pytest.mark.timeout(400)
def test_a_submitted_job_writes_to_s3_and_is_recorded(cluster, mlflow_server, s3, corpus):
    reals = ["--input", f"real={corpus}/manifold", "--output", f"{s3}/submitted/m"]
    done = submit(cluster, "build", "jobs.build_manifold", *reals)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert driver_exit_code(cluster, "build") == 0
    assert "60 rows" in done.stdout  # progress reaches the log
    assert storage.read_json(f"{s3}/submitted/m/manifest.json")["ok"] == 60

    failed = submit(cluster, "fail", "jobs.build_manifold", "--input", f"{s3}/none", *reals[2:])
    assert failed.returncode == 1  # Ray's own, for any failure
    assert driver_exit_code(cluster, "fail") == 2
    assert f"{s3}/none" in failed.stdout
    assert "Traceback" not in failed.stdout

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("manifpt")
    runs = {
        r.data.tags.get("manifpt.ray_submission_id"): r
        for r in client.search_runs([experiment.experiment_id])
    }
    assert runs["build"].info.status == "FINISHED"
    assert runs["build"].data.metrics["rows_in"] == 60
    assert runs["fail"].info.status == "FAILED"
    files = {f.path for f in client.list_artifacts(runs["build"].info.run_id)}
    assert {"manifest.json", "summary.json", "versions.json"} <= files


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_submitted_sweep_runs_on_s3_and_an_mlflow_server(cluster, mlflow_server, s3, corpus):
    images = ["--input", f"{corpus}/labelled", "--reals", f"{corpus}/manifold", "--sources"]
    flags = [*images, "--output", f"{s3}/submitted/sweep", "--trials", "2"]
    sweep = ["tuning.sweep", "--config", "tuning/quick.yaml", *flags]
    done = submit(cluster, "sweep", *sweep, seconds=800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "test images, best" in done.stdout
    board = json.loads(storage.read_bytes(f"{s3}/submitted/sweep/leaderboard.json"))
    assert len(board) == 2
    assert storage.exists(f"{board[0]['attributor']}/manifest.json")

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("manifpt").experiment_id
    parent, *others = client.search_runs([experiment], "tags.`manifpt.job` = 'sweep'")
    assert not others
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["manifpt.ray_submission_id"] == "sweep"
    below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    assert {r.info.status for r in client.search_runs([experiment], below)} <= {
        "FINISHED",
        "KILLED",
    }
    assert "leaderboard.txt" in {f.path for f in client.list_artifacts(parent.info.run_id)}
    stored = [path for path, _ in storage.files_under(f"{s3}/ml")]
    assert any("leaderboard.txt" in path for path in stored)
