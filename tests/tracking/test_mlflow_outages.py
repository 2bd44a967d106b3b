"""MLflow that dies, hangs or is not there costs a job nothing, and its runs are caught up."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import MlflowServer

from manifpt import tracking
from manifpt.errors import ManifptError
from manifpt.throughput.seaweed import free_ports
from manifpt.tracking import runs, server, watch
from manifpt.tracking.spool import Spool, State

pytestmark = [pytest.mark.long, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
STEPS = 300
# Waits for a line of the test's before it records, and for one before it ends.
JOB = f"""
import sys
from manifpt import tracking
from manifpt.tracking import runs
runs.END_SECONDS, runs.START_SECONDS = map(float, sys.argv[1:])
with tracking.run("outage", {{"a": 1}}) as run:
    run.metrics({{"x": 0.0}})
    print(run.id, flush=True)
    sys.stdin.readline()
    for step in range(1, {STEPS}):
        run.metrics({{"x": step}}, step=step)
    run.bytes("note.txt", b"bytes")
    run.inputs({{"given": ["a=/b"], "content_key": "0" * 64}}, "test")
    child = run.child("trial", {{"b": 2}})
    child.metrics({{"y": 1.0}})
    child.end("FINISHED")
    print("recorded", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _spools(tmp_path, monkeypatch):
    """Let what is given up lie in the test's own folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


class Job:
    """A job in a process of its own."""

    def __init__(self, url: str, end: float = 30.0, start: float = 20.0, **env: str) -> None:
        env = {"MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_TIMEOUT": "4", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(end), str(start)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        )  # fmt: skip
        self.run_id = self.process.stdout.readline().strip()

    def go_on(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def record(self) -> float:
        """Let it record; return the seconds that it took."""
        began = time.monotonic()
        self.go_on()
        assert self.process.stdout.readline() == "recorded\n"
        return time.monotonic() - began

    def end(self) -> list[str]:
        """Let it end well; return its lines about MLflow, which are all of stderr."""
        self.go_on()
        _, error = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, error
        lines = error.splitlines()
        assert all(line.startswith("MLflow ") for line in lines), error
        assert len(lines) <= 3
        return lines


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory):
    made = MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def up(mlflow_server):
    if mlflow_server.process is None:
        mlflow_server.start()
    return mlflow_server


def ended(url: str, run_id: str, seconds: float = 60.0):
    """Wait for the end of a run; return it."""
    ends = time.monotonic() + seconds
    while (run := MlflowClient(url).get_run(run_id)).info.status == "RUNNING":
        assert time.monotonic() < ends, "still RUNNING"
        time.sleep(0.5)
    return run


def check_whole(url: str, run_id: str, status: str = "FINISHED") -> None:
    """Assert that a run and the one below it have all that the job recorded."""
    client = MlflowClient(url)
    run = ended(url, run_id)
    assert run.info.status == status
    assert run.data.params == {"a": "1"}
    steps = sorted(metric.step for metric in client.get_metric_history(run_id, "x"))
    assert steps == list(range(STEPS))
    names = {file.path for file in client.list_artifacts(run_id)}
    assert names == {"note.txt", "versions.json"}
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["a=/b"]
    experiment = run.info.experiment_id
    (child,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert (child.info.status, child.data.metrics) == ("FINISHED", {"y": 1.0})
    token = run.data.tags["manifpt.token"]
    assert len(client.search_runs([experiment], f"tags.`manifpt.token` = '{token}'")) == 1


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_server_that_is_killed_and_comes_back_has_all(up):
    job = Job(up.url)
    up.kill()
    assert job.record() < 5
    time.sleep(1)
    up.start()
    first, second = job.end()
    assert "connection refused; the job goes on" in first
    assert "answers again" in second
    check_whole(up.url, job.run_id)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kill", [False, True])
def test_the_watcher_ends_runs_when_the_server_is_back_after_the_job(up, kill):
    job = Job(up.url, end=1)
    up.kill()
    job.record()
    if kill:
        job.process.kill()
        job.process.communicate(timeout=30)
    else:
        first, last = job.end()
        assert "connection refused" in first
        assert "records are not written; they lie in" in last
    up.start()
    check_whole(up.url, job.run_id, "KILLED" if kill else "FINISHED")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_server_that_hangs_counts_as_dead(up):
    job = Job(up.url)
    up.signal(signal.SIGSTOP)
    assert job.record() < 5
    time.sleep(15)
    up.signal(signal.SIGCONT)
    first, second = job.end()
    assert "timed out" in first
    assert "answers again" in second
    check_whole(up.url, job.run_id)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_server_that_hangs_when_a_job_starts_gets_one_run(up):
    up.signal(signal.SIGSTOP)
    job = Job(up.url, start=2, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert job.run_id == ""
    time.sleep(5)
    up.signal(signal.SIGCONT)
    job.record()
    job.end()
    client = MlflowClient(up.url)
    experiment = client.get_experiment_by_name(server.EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment], "tags.`mlflow.runName` = 'outage'", max_results=1)
    check_whole(up.url, run.info.run_id)


def test_a_job_works_without_a_server_and_says_where_its_records_are():
    (port,) = free_ports(1)
    job = Job(f"http://127.0.0.1:{port}", end=0.5, MANIFPT_MLFLOW_HOURS="0")
    assert job.run_id == ""
    job.record()
    first, last = job.end()
    assert "connection refused; the job goes on" in first
    folder = Path(last.split("they lie in ")[1].split(",")[0])
    assert (folder / "records.jsonl").exists()


@pytest.mark.slow
def test_records_that_were_given_up_are_written_by_hand(tmp_path):
    job = Job(f"http://127.0.0.1:{free_ports(1)[0]}", end=0.5, MANIFPT_MLFLOW_HOURS="0")
    job.record()
    last = job.end()[-1]
    folder = last.split("they lie in ")[1].split(",")[0]
    store = f"sqlite:///{tmp_path}/mlflow.db"
    time.sleep(3)  # the watcher has given up
    done = subprocess.run(
        [*watch.COMMAND, folder], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        cwd=ROOT, env=os.environ | {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(server.EXPERIMENT).experiment_id
    (run,) = client.search_runs([experiment], "tags.manifpt.job = 'outage'")
    check_whole(store, run.info.run_id)
    assert not Path(folder).exists()


@pytest.mark.parametrize("uri", ["htp://host", "http://no such", "nonsense"])
def test_a_wrong_uri_is_one_line(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ManifptError, match="MLFLOW_TRACKING_URI") as caught, tracking.run("x", {}):
        pass
    assert "\n" not in str(caught.value)


def test_what_needs_mlflow_is_an_error_without_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(runs, "STOP_SECONDS", 0.1)
    monkeypatch.setattr(runs, "END_SECONDS", 0.1)
    monkeypatch.setenv("MANIFPT_MLFLOW_HOURS", "0")
    with pytest.raises(ManifptError, match="connection refused"), tracking.run("x", {}) as run:
        run.require()


def test_two_first_jobs_on_a_fresh_sqlite_store_both_work(tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    code = """
from manifpt import tracking
with tracking.run("first", {}) as run:
    run.metrics({"x": 1.0})
"""
    env = os.environ | {"MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(ROOT)}
    jobs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for job in jobs:
        assert (job.communicate(timeout=60)[1], job.returncode) == (b"", 0)
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(server.EXPERIMENT).experiment_id
    found = client.search_runs([experiment])
    assert [(r.info.status, r.data.metrics) for r in found] == [("FINISHED", {"x": 1.0})] * 2


def test_a_record_cut_short_by_a_kill_is_not_read():
    spool = Spool.make()
    spool.append({"op": "open", "run": "a"})
    spool.append({"op": "open", "run": "b"})
    with (spool.folder / "records.jsonl").open("ab") as file:
        file.write(b'{"op": "end", "run"')
    assert spool.left() == 2
    assert spool.unended() == ["b", "a"]
    _, end = spool.next(State())
    assert spool.next(State(end))[0] == {"op": "open", "run": "b"}
    spool.remove()


def test_a_full_disk_costs_records_and_not_the_job():
    code = """
import resource
from manifpt import tracking
with tracking.run("full", {}) as run:
    run.require()
    records = run._outbox.spool.folder / "records.jsonl"
    room = records.stat().st_size + 100  # so that half of a record fits
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    run.document("large.json", ["x" * 5000])
    run.bytes("large.bin", bytes(50000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run.metrics({"after": 2.0})
    print(run.id)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(done.stdout.strip())
    assert found.data.metrics == {"after": 2.0}
    assert found.info.status == "FINISHED"
    (line,) = done.stderr.splitlines()
    assert "records are lost" in line
