"""Whether the run that has claimed an output still lives: its process, and its signs of life."""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from manifpt import storage
from manifpt.errors import ManifptError

BEAT_SECONDS = 10.0
# Silence after which a run is taken for dead.
SILENCE_SECONDS = 60.0
# Ray's processes outlive a driver that is killed by some seconds.
DYING_SECONDS = 15.0
# How long the end of a run waits for a sign of life that is being written.
JOIN_SECONDS = 30.0


def this_process() -> dict[str, Any]:
    """Return which process this is: host, id, and the moments of the host's and its own start."""
    found = {"host": socket.gethostname(), "pid": os.getpid(), "begun": time.time()}
    start = _start(os.getpid())
    return found | ({"start": start} if start else {})


def _start(pid: int) -> str | None:
    """Return when this host and a process of it began; None for one that is no more.

    Of the process, fields 3 and 22 of its line in /proc tell state and start (proc(5)).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def is_dead(run: dict[str, Any]) -> bool:
    """Tell whether a run was a process of this host that is no more."""
    return _is_here(run) and _start(int(run["pid"])) != run["start"]


def _is_here(run: dict[str, Any]) -> bool:
    return run.get("host") == socket.gethostname() and "start" in run


def described(run: dict[str, Any]) -> str:
    """Return which run it is, for people."""
    age = max(0.0, time.time() - run["begun"])
    return f"process {run['pid']} on {run['host']}, begun {age:.0f} s ago"


def silent(run: dict[str, Any], uri: str) -> bool:
    """Tell whether a run is dead; wait for the answer where it is of another host.

    ``uri`` is where it leaves its signs of life. It is taken for dead after a silence of
    ``SILENCE_SECONDS``, by the clock of the storage.
    """
    if _is_here(run):
        return _dies(run)
    last = storage.age(uri)
    until = time.monotonic() + SILENCE_SECONDS - min(last or 0.0, SILENCE_SECONDS)
    if time.monotonic() < until:
        waiting = f"{uri}: a run may be at work ({described(run)}); waiting for a sign of life"
        print(waiting, file=sys.stderr, flush=True)
    while time.monotonic() < until:
        time.sleep(1)
        age = storage.age(uri)
        if age is not None and (last is None or age < last):
            return False
        last = age
    return True


def _dies(run: dict[str, Any]) -> bool:
    """Tell whether a process of this host is dead; of a job that was killed it may die just now."""
    until = time.monotonic() + DYING_SECONDS
    while not is_dead(run):
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)
    return True


class Heart:
    """Leaves a sign of life at a URI every few seconds, until it stops and takes it away."""

    def __init__(self, uri: str, token: str) -> None:
        self.uri, self.token, self.started = uri, token, time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.is_set():
            body = {"token": self.token, "started": self.started, "beat": time.time()}
            with suppress(Exception):  # a disk that is full is the job's to tell
                storage.write_json(self.uri, body)
            self._stop.wait(BEAT_SECONDS)

    def stop(self) -> None:
        """End the signs, and remove the last."""
        self._stop.set()
        self._thread.join(timeout=JOIN_SECONDS)
        with suppress(ManifptError):
            if storage.read_json(self.uri).get("token") == self.token:  # not another run's
                storage.remove_file(self.uri)
