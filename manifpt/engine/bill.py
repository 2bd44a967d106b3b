"""The cost of a cluster's nodes while a job runs, and the end of a job that costs too much."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from manifpt import storage
from manifpt.engine import prometheus, scaling
from manifpt.errors import ManifptError
from manifpt.outputs import claims
from manifpt.outputs.layouts import COST

LOOK_SECONDS, NOTE_SECONDS = 5.0, 15.0


def hourly(nodes: Sequence[Mapping[str, float]], prices: Mapping[str, float]) -> float:
    """Return the cost of nodes in an hour, by prices of Ray's resources."""
    return sum(node.get(name, 0.0) * price for node in nodes for name, price in prices.items())


@dataclass
class Bill:
    """The cost of all nodes that are up while a job runs, in the currency of its ``prices``.

    ``most`` is its limit, or None. The amount spent is noted in ``output``, so that all starts of a
    job count together.
    """

    prices: Mapping[str, float]
    most: float | None = None
    output: str | None = None
    spent: float = 0.0

    def __post_init__(self) -> None:
        if self.most is not None and not self.prices:
            raise ManifptError("--max-cost: needs --price-cpu-hour or --price-gpu-hour, or both")
        self.output = storage.absolute(self.output) if self.output else None
        self._looked: float | None = None
        self._noted = time.monotonic()
        self._stop = threading.Event()

    @property
    def exceeded(self) -> bool:
        """Whether the limit is reached."""
        return self.most is not None and self.spent >= self.most

    def count(self, nodes: Sequence[Mapping[str, float]], now: float) -> None:
        """Add the cost of nodes since the last call, at ``now`` in seconds."""
        if self._looked is not None:
            self.spent += hourly(nodes, self.prices) * (now - self._looked) / 3600
        self._looked = now
        prometheus.emit("manifpt_cost", self.spent)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count while the block runs; raise ManifptError once the limit is reached."""
        if not self.prices:
            yield
            return
        self._read()
        self._check()
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            self._check()
            raise
        finally:
            self._stop.set()
            thread.join(timeout=LOOK_SECONDS)

    def forget(self) -> None:
        """Remove the note of a job that has done its work."""
        if self.prices and self.output is not None:
            storage.remove_file(storage.join(self.output, COST))
            self.output = None

    def _check(self) -> None:
        if self.exceeded:
            raise ManifptError(
                f"--max-cost {self.most:g}: the nodes have cost {self.spent:.4g}; with a larger "
                "--max-cost the same command goes on from here"
            ) from None

    def _watch(self) -> None:
        """Count the nodes that are up; stop the job as Ctrl-C does once the limit is reached."""
        import ray

        while not self._stop.wait(LOOK_SECONDS if self._looked else 0.2):
            if not ray.is_initialized():
                continue
            with suppress(Exception):  # the job itself reports a cluster that is lost
                self.count(scaling.nodes_up(), time.monotonic())
            if self.exceeded or time.monotonic() - self._noted > NOTE_SECONDS:
                self._note()
            if self.exceeded and not self._stop.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _read(self) -> None:
        uri = storage.join(self.output, COST) if self.output else ""
        if uri and storage.exists(uri):
            found = storage.read_json(uri)
            if set(found) == {"spent"}:
                self.spent = float(found["spent"])
            else:
                self.output = None  # a file of the user's

    def _note(self) -> None:
        """Write the amount spent, while the job has a claim there."""
        self._noted = time.monotonic()
        if self.output is not None and claims.works_under(self.output):
            with suppress(ManifptError):  # the job itself reports a full disk
                storage.write_json(storage.join(self.output, COST), {"spent": self.spent})
