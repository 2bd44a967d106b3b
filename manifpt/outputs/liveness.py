"""Tell whether the run that claimed an output is alive, by its process and its signs of life."""

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.outputs.formats import RunMark

BEAT_SECONDS = 10.0
# Seconds without a sign of life after which a run counts as dead.
SILENCE_SECONDS = 60.0
# Seconds that a process of this host may take to die: Ray's processes outlive a killed driver.
DYING_SECONDS = 15.0
# Seconds that the end of a run waits for a sign of life that is being written.
JOIN_SECONDS = 30.0


def this_process() -> RunMark:
    """Describe this process: host, id, the present time, and the start of host and process."""
    found = RunMark(host=socket.gethostname(), pid=os.getpid(), begun=time.time())
    start = _start(os.getpid())
    if start:
        found["start"] = start
    return found


def _start(pid: int) -> str | None:
    """Return a text for the start of this host and of a process on it; None if that is dead.

    Fields 3 and 22 of the process's line in /proc hold its state and its start (proc(5)).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # containers count processes by themselves
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{space}:{fields[19]}"


def is_dead(run: RunMark) -> bool:
    """Tell whether a run was a process of this host that has ended."""
    return _is_here(run) and _start(int(run["pid"])) != run["start"]


def _is_here(run: RunMark) -> bool:
    mine, other = _start(os.getpid()), str(run.get("start", ""))
    same = mine is not None and mine.rpartition(":")[0] == other.rpartition(":")[0]
    return same and run.get("host") == socket.gethostname()


def run_text(run: RunMark) -> str:
    """Return a text that says which run this is, for a message."""
    age = max(0.0, time.time() - run["begun"])
    return f"process {run['pid']} on {run['host']}, begun {age:.0f} s ago"


def silent(run: RunMark, uri: str) -> bool:
    """Tell whether a run is dead; this waits for a sign of life of a run on another host.

    ``uri`` is the file of its signs of life. The run counts as dead after ``SILENCE_SECONDS``
    without one, by the clock of the storage. In any case some seconds are waited for one here.
    """
    if _is_here(run):
        return _dies(run)
    last = storage.age(uri)
    left = SILENCE_SECONDS - min(max(last or 0.0, 0.0), SILENCE_SECONDS)
    # Clocks may differ, and the run may have been kept from its signs: a living one leaves another.
    until = time.monotonic() + max(left, 2.5 * BEAT_SECONDS)
    waiting = f"{uri}: a run may be at work ({run_text(run)}); waiting for a sign of life"
    print(waiting, file=sys.stderr, flush=True)
    while time.monotonic() < until:
        time.sleep(1)
        age = storage.age(uri)
        if age is not None and (last is None or age < last):
            return False
        last = age
    return True


def _dies(run: RunMark) -> bool:
    """Tell whether a process of this host is dead; wait a little, since it may be dying now."""
    until = time.monotonic() + DYING_SECONDS
    while not is_dead(run):
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)
    return True


class Heart:
    """Writes a sign of life to a URI every few seconds; ``stop`` ends that and removes the file."""

    def __init__(self, uri: str, token: str) -> None:
        self.uri, self.token, self.started = uri, token, time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.is_set():
            body = {"token": self.token, "started": self.started, "beat": time.time()}
            with suppress(Exception):  # the job itself reports a full disk
                storage.write_json(self.uri, body)
            self._stop.wait(BEAT_SECONDS)

    def stop(self) -> None:
        """Stop the signs of life, and remove the last one."""
        self._stop.set()
        self._thread.join(timeout=JOIN_SECONDS)
        with suppress(ManifptError):
            if storage.read_json(self.uri).get("token") == self.token:  # not another run's
                storage.remove_file(self.uri)
