"""Signals and a memory that is used up end a job with one line and the right exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient

from manifpt.cli import job
from manifpt.storage import failures

ROOT = Path(__file__).parents[2]
WAITING = """
import sys, time
from manifpt.cli import job
from manifpt.cli.job_options import JobConfig

def run(config, tracked):
    print(tracked.id, flush=True)
    time.sleep(100)
    return {}

sys.exit(job.main("waiting", JobConfig, run, "Wait.", [], on_ray=False))
"""
EARLY = """
import sys, time
from manifpt.cli import job

def command():
    print("ready", flush=True)
    time.sleep(100)

sys.exit(job.exit_code("early", command))
"""
STARTS_RAY = """
import sys, threading, os, signal
from manifpt.cli import job
from manifpt.engine import session
from manifpt.cli.job_options import JobConfig

start = session.start
def started():
    import ray
    connect = ray._private.worker.connect
    def stopped(*args, **kwargs):  # Ray's own handler is in place by now
        os.kill(os.getpid(), signal.SIGTERM)
        return connect(*args, **kwargs)
    ray._private.worker.connect = stopped
    start()
session.start = started
sys.exit(job.main("starting", JobConfig, lambda config, tracked: {}, "Start.", []))
"""
GREEDY = """
import resource, sys
import numpy as np
from manifpt.cli import job

def command():
    resource.setrlimit(resource.RLIMIT_AS, (2**31, resource.RLIM_INFINITY))
    np.ones(2**34)

sys.exit(job.exit_code("greedy", command))
"""


def started(code: str, *before: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*before, sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_a_job_and_its_run(number):
    process = started(WAITING)
    run_id = process.stdout.readline().strip()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines() == ["waiting: stopped; the same command goes on from here"]
    run = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_run(run_id)
    assert run.info.status == "KILLED"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_before_the_job_begins_is_one_line(number):
    process = started(EARLY)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.count("\n")) == (130, 1)


@pytest.mark.slow
def test_a_signal_while_ray_starts_is_one_line():
    process = started(STARTS_RAY)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert error.splitlines() == ["starting: stopped; the same command goes on from here"]


def test_nohup_is_respected():
    process = started(EARLY, "nohup")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_memory_that_is_used_up_is_one_line():
    process = started(GREEDY)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = error.splitlines()
    assert line.startswith("greedy: out of memory (Unable to allocate 128")
    assert "goes on from here" in line


def torch_asks_too_much() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def arrow_asks_too_much() -> None:
    pa.allocate_buffer(2**60)


def python_asks_too_much() -> None:
    bytearray(2**60)


def a_worker_asked_too_much() -> None:
    raise RuntimeError("Traceback:\n  ...\nnumpy._core._exceptions._ArrayMemoryError: Unable to")


def linux_has_none() -> None:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize(
    "ask",
    [
        torch_asks_too_much,
        arrow_asks_too_much,
        python_asks_too_much,
        a_worker_asked_too_much,
        linux_has_none,
    ],
)
def test_every_way_to_run_out_of_memory_is_known(ask, capsys):
    def command() -> None:
        with failures.explain_errors("/somewhere"):
            ask()

    assert job.exit_code("job", command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("job: out of memory (")


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(ZeroDivisionError):
        job.exit_code("job", lambda: print(1 / 0))
    assert failures.out_of_memory(ValueError("nothing")) is None
