"""A run never stays RUNNING, whatever ends its job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from manifpt import tracking
from manifpt.tracking import server

ROOT = Path(__file__).parents[2]
WAITING = """
import sys, time
from manifpt import tracking
from manifpt.tracking import server
with tracking.run("waiting", {"a": 1}) as run:
    print(run.id, flush=True)
    time.sleep(100)
"""


def status(run_id: str) -> str:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(run_id).info.status


def test_finished_and_failed():
    with tracking.run("good", {"a": 1}) as run:
        run.metrics({"rows": 3})
    assert status(run.id) == "FINISHED"
    with pytest.raises(RuntimeError), tracking.run("bad", {}) as run:
        raise RuntimeError
    assert status(run.id) == "FAILED"


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_killed(with_signal):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    run_id = process.stdout.readline().strip()
    process.send_signal(with_signal)
    process.wait(timeout=30)
    for _ in range(60):
        if status(run_id) != "RUNNING":
            break
        time.sleep(0.5)
    assert status(run_id) == "KILLED"


def test_runs_inside_a_run_are_its_children():
    with tracking.run("outer", {}) as outer, tracking.run("inner", {}) as inner:
        pass
    with tracking.run("later", {}) as later:
        pass
    client = MlflowClient()
    parents = [client.get_run(r.id).data.tags.get("mlflow.parentRunId") for r in (inner, later)]
    assert parents == [outer.id, None]


def test_a_value_that_mlflow_refuses_is_left_out_with_one_line(capsys):
    with tracking.run("refused", {}) as run:
        run.metrics({"no?such*name": 1.0})
        run.metrics({"no?such*either": 1.0})
        run.metrics({"good": 2.0})
    found = MlflowClient(run.uri).get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"good": 2.0}
    (line,) = capsys.readouterr().err.splitlines()
    assert "no?such*name" in line


@pytest.mark.parametrize("variable", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_runs_belong_to_the_experiment_of_the_user(monkeypatch, tmp_path, variable):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    given = client.create_experiment("theirs")
    monkeypatch.setenv(variable, given if variable.endswith("ID") else "theirs")
    server.client.cache_clear()
    with tracking.run("attribute", {"seed": 1}):
        pass
    server.client.cache_clear()
    assert os.environ.get("MLFLOW_EXPERIMENT_ID") == (given if variable.endswith("ID") else None)
    assert [run.info.status for run in client.search_runs([given])] == ["FINISHED"]


def test_the_command_of_pages_is_that_of_this_python(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@host/mlflow")
    program, *flags = server.command_of_pages().split()
    assert Path(program).exists()
    assert flags == ["ui", "--backend-store-uri", "https://host/mlflow"]
