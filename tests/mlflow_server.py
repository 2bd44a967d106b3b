"""A real MLflow server on loopback that tests stop, kill and start again on the same port."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from manifpt.throughput.seaweed import free_ports

READY_SECONDS = 240  # of a busy machine


class MlflowServer:
    """One worker over a SQLite store and artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/db"]
        place = ["--artifacts-destination", f"{self.folder}/artifacts", "--workers", "1"]
        place += ["--host", "127.0.0.1", "--port", str(self.port)]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).parent / "mlflow", "server", *store, *place],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        ends = time.monotonic() + READY_SECONDS
        while time.monotonic() < ends:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError((self.folder / "log.txt").read_text()[-2000:])

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kill it, as a machine does that stops."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
