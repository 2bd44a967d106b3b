"""S3 that refuses, fails or never answers: asked for as long as is said, then one line."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3fs
from faulty_s3 import FaultyS3

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import listing
from manifpt.storage import s3 as client
from manifpt.throughput.seaweed import free_ports

pytestmark = [pytest.mark.long, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "canary", "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip


def write(uri: str) -> None:
    storage.write_bytes(uri, b"x")


WAYS = {
    "read": storage.read_bytes,
    "write": write,
    "list": lambda uri: list(listing.objects(uri, "", listing.Listing())),
    "versioned": storage.read_versioned,
}


@pytest.fixture
def endpoint(monkeypatch):
    """Point this process to a server and give it some seconds; no outage of before counts."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, os.environ.get(name, value))

    def point(url: str, seconds: float) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("MANIFPT_S3_SECONDS", str(seconds))
        s3fs.S3FileSystem.clear_instance_cache()
        client._outages.clear()

    yield point
    s3fs.S3FileSystem.clear_instance_cache()
    client._outages.clear()


@pytest.fixture(scope="module")
def silent():
    """A socket that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(200)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def refused() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


def failure(way: str) -> tuple[str, float]:
    """Return the line by which a way to S3 fails, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(ManifptError) as caught:
        WAYS[way]("s3://bucket/key")
    return str(caught.value), time.monotonic() - began


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_refuses_is_asked_for_so_long(endpoint, way):
    url = refused()
    endpoint(url, 0.5)
    line, seconds = failure(way)
    assert 0.5 <= seconds < 20
    assert line.startswith(url)
    assert "no connection, for " in line
    assert "check AWS_ENDPOINT_URL" in line
    assert "goes on from here" in line
    assert "canary" not in line
    assert failure("read")[1] < seconds + 5  # the same outage
    assert len(client._outages) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_never_answers_is_given_up(endpoint, silent, way):
    endpoint(silent, 1)
    line, seconds = failure(way)
    assert 1 <= seconds < 20
    assert line.startswith(silent)
    assert "it does not answer" in line
    assert "goes on from here" in line


@pytest.fixture
def failing(s3, endpoint):
    """A proxy before the S3 server that answers 503 to all."""
    with FaultyS3(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1]), share=1.0) as proxy:
        proxy.random.choice = lambda _: "failed"
        endpoint(proxy.url, 60)
        yield proxy


def test_a_failing_server_is_told_as_such(failing, endpoint):
    endpoint(failing.url, 1)
    assert "it answers 503" in failure("read")[0]


@pytest.mark.parametrize("way", WAYS)
def test_credentials_that_are_refused_fail_at_once(failing, way):
    failing.expired = True
    line, seconds = failure(way)
    assert "expired" in line or "denied" in line
    assert seconds < 20


def test_a_server_that_comes_back_is_told_once_and_costs_nothing(failing, capsys, monkeypatch):
    monkeypatch.setattr(client, "FIRST_LINE_SECONDS", 0.5)
    refusals = []

    def fail(_):
        refusals.append(time.monotonic())
        if refusals[-1] > refusals[0] + 1.5:
            failing.share = 0.0
        return "failed"

    failing.random.choice = fail
    write("s3://manifpt/outage")
    assert storage.read_bytes("s3://manifpt/outage") == b"x"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"waiting for {failing.url} (it answers 503")


JOB = """
import sys
from manifpt.cli import job
from manifpt import storage
sys.exit(job.exit_code("probe", lambda: print(storage.read_bytes("s3://bucket/key"))))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_limits_that_are_said(silent):
    jobs = {}
    for url in (refused(), silent):
        env = os.environ | KEYS | {"AWS_ENDPOINT_URL": url, "PYTHONPATH": str(ROOT)}
        env.pop("MANIFPT_S3_SECONDS", None)
        jobs[url] = subprocess.Popen(
            [sys.executable, "-c", JOB], env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
    began = time.monotonic()
    for url, job in jobs.items():
        *waiting, last = job.communicate(timeout=200)[1].splitlines()
        assert 60 < time.monotonic() - began < 120
        assert job.returncode == 2
        assert last.startswith(f"probe: {url}")
        assert 2 <= len(waiting) <= 4
        assert all(line.startswith(f"waiting for {url} (") for line in waiting)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pyarrows_way_is_asked_for_so_long_and_not_longer(endpoint, silent):
    def seconds(url: str) -> float:
        endpoint(url, 60)
        fs, path = storage.arrow_filesystem("s3://bucket/key")
        began = time.monotonic()
        with pytest.raises(OSError, match="AWS Error NETWORK_CONNECTION"):
            fs.get_file_info(path)
        return time.monotonic() - began

    assert 50 < seconds(refused()) < 180
    assert 50 < seconds(silent) < 240
