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

ROOT = Path(__file__).parents[1]
WAITING = """
import sys, time
from manifpt import tracking
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
