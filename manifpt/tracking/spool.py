"""A folder with the records of a job that go to MLflow; it stays until all of them are sent."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from manifpt.tracking.spool_format import Record

# The most metrics that the server accepts in one request.
MOST_METRICS = 1000


class State(NamedTuple):
    """The bytes of a spool's records that are sent, and MLflow's ids of its runs by token."""

    offset: int = 0
    runs: dict[str, str] = {}  # noqa: RUF012 - never changed in place


class Spool:
    """Records in their order. The job appends them; the job or the process beside it sends them."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._lock = threading.Lock()
        self._files = 0

    @classmethod
    def make(cls) -> "Spool":
        """Make an empty spool in a temporary folder that only this user may read."""
        made = cls(tempfile.mkdtemp(prefix="manifpt-mlflow-"))
        made.save(State())
        return made

    def append(self, record: Record) -> None:
        """Add a record; raise OSError if the disk is full."""
        line = json.dumps(record).encode() + b"\n"
        with self._lock, (self.folder / "records.jsonl").open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):  # half a record would make the next unreadable
                file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def keep(self, name: str, data: bytes) -> str:
        """Write a file that a later record will name; return its path."""
        with self._lock:
            self._files += 1
            path = self.folder / "files" / str(self._files) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        return str(path)

    def state(self) -> State:
        """Return the state of sending."""
        return State(*json.loads((self.folder / "state.json").read_bytes()))

    def save(self, state: State) -> None:
        """Store the state of sending."""
        partial = self.folder / "state.partial"
        partial.write_text(json.dumps(state))
        partial.replace(self.folder / "state.json")

    def records(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Yield each record from byte ``offset`` on, with its end; stop at an incomplete one."""
        path = self.folder / "records.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                yield json.loads(line), offset

    def next(self, state: State, most: int = MOST_METRICS) -> tuple[Record, int] | None:
        """Return the next record and its end, or None if all are sent.

        Metrics of one run that follow each other are joined to one record.
        """
        first: Record | None = None
        last = state.offset
        for record, end in self.records(state.offset):
            if first is None:
                first = record
            elif (
                first["op"] == "metrics"
                and record["op"] == "metrics"
                and record["run"] == first["run"]
                and len(first["metrics"]) + len(record["metrics"]) <= most
            ):
                first = {**first, "metrics": first["metrics"] + record["metrics"]}
            else:
                break
            last = end
        return None if first is None else (first, last)

    def left(self) -> int:
        """Return the number of records that are not sent yet."""
        return sum(1 for _ in self.records(self.state().offset))

    def unended(self) -> list[str]:
        """Return the tokens of runs that were opened but not ended, the latest first."""
        tokens: dict[str, None] = {}
        for record, _ in self.records():
            if record["op"] == "open":
                tokens[record["run"]] = None
            elif record["op"] == "end":
                tokens.pop(record["run"], None)
        return list(reversed(tokens))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold a lock, so that one process at a time sends; it ends if its process dies."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
