"""Runs in separate processes, their memory, and rates without start-up."""

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from manifpt.errors import ManifptError

LIMIT_SECONDS = 3600
WATCH_SECONDS = 0.2

T = TypeVar("T")


def own_mb() -> float:
    """Return the memory of this process that it shares with no other, MB."""
    return _anonymous_mb("self")


def _anonymous_mb(process: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    # A process that has just ended has no such line.
    return next((int(x.split()[1]) for x in lines if x.startswith("RssAnon")), 0) / 1024


def _answer(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    pipe.send(function(*args))


def in_a_process(
    title: str,
    function: Callable[..., T],
    *args: Any,
    watch: Callable[[int], AbstractContextManager[Any]] = lambda _: nullcontext(),
) -> T:
    """Call a function in a new process; return its result. ``watch`` gets the id of the process."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_answer, args=(there, function, args))
    process.start()
    there.close()
    try:
        with watch(process.pid or 0):
            if not here.poll(LIMIT_SECONDS):
                raise ManifptError(f"benchmark: {title} gave no result in {LIMIT_SECONDS} s")
            found: T = here.recv()
    except EOFError:
        process.join()
        reason = f"its process ended with {process.exitcode}; see what it printed"
        raise ManifptError(f"benchmark: {title} was not measured, {reason}") from None
    finally:
        if process.is_alive() and not here.closed:
            process.join(10)
        process.kill()
    return found


def steady_rate(few: int, many: int, seconds: Sequence[tuple[float, float]]) -> float:
    """Return images/s for the images of ``many`` beyond ``few``: the median over runs.

    ``seconds`` are those of each run with few and with many.
    """
    return float(np.median([(many - few) / (m - f) for f, m in seconds]))


class Watch(AbstractContextManager["Watch"]):
    """The peak memory of a process and of its descendants, while the block runs.

    ``peaks`` are MB that a process shares with no other, the largest in each role that ``roles``
    names: the first whose key is part of the process's name at that time, as Ray sets it while a
    process works on a task. Ray's object store is memory of its own, with a limit of its own, and
    is in none of them.
    """

    def __init__(self, root: int, roles: dict[str, str]) -> None:
        self.root, self.roles = root, roles
        self.peaks: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop watching."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(WATCH_SECONDS):
            for process in _family(self.root):
                try:
                    name = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
                    mb = _anonymous_mb(str(process))
                except OSError:  # it has ended
                    continue
                found = (role for part, role in self.roles.items() if part in name)
                role = "driver" if process == self.root else next(found, None)
                if role is not None:
                    self.peaks[role] = max(mb, self.peaks.get(role, 0.0))


def _family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # After the name, which may hold anything: state, parent, ...
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found
