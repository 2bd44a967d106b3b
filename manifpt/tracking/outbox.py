"""The thread that sends the records in a job's spool to MLflow, and says once if that fails."""

import sys
import threading
import time
from contextlib import suppress

from manifpt.errors import public
from manifpt.tracking import recorder, server
from manifpt.tracking.spool import Spool
from manifpt.tracking.spool_format import Record

# Pauses between two tries grow from the shortest to the longest. At the end of the job they are at
# most URGENT_PAUSE.
SHORTEST_PAUSE, LONGEST_PAUSE, URGENT_PAUSE = 1.0, 30.0, 2.0
# Seconds that a model, which may be large, may take to reach a server that answers.
MODEL_SECONDS = 600.0


class Outbox:
    """Takes records without waiting for MLflow, and sends them in their order.

    ``refusal`` is the error of the first try if MLflow will never accept the run. ``failure`` is
    the error of the last try if that failed.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.spool = uri, Spool.make()
        self.refusal: Exception | None = None
        self.failure: Exception | None = None
        self._written = time.monotonic()
        self._said: set[str] = set()
        self._new, self._tried, self._urgent = (threading.Event() for _ in range(3))
        self._stopped = False
        self._runs: dict[str, str] = {}
        threading.Thread(target=self._work, daemon=True, name="mlflow").start()

    def put(self, record: Record) -> None:
        """Add a record."""
        try:
            self.spool.append(record)
        except OSError as error:
            self.lose(error)
        self._new.set()

    def lose(self, error: OSError) -> None:
        """Print once that records are lost because they could not be written to the disk."""
        self._say_once("lost", f"records are lost: {server.error_text(error)}")

    def first_try(self, seconds: float) -> None:
        """Wait until MLflow has answered or failed once, for at most ``seconds``."""
        if not self._tried.wait(seconds):
            self._fails(TimeoutError(f"no answer in {seconds:.0f} s"))

    def flush(self, seconds: float) -> bool:
        """Wait until all records are sent; give up when none was sent for ``seconds``."""
        self._urgent.set()
        began = time.monotonic()
        while (following := self.spool.next(self.spool.state())) is not None:
            model = following[0]["op"] == "model" and self.failure is None
            if time.monotonic() - max(began, self._written) >= (
                MODEL_SECONDS if model else seconds
            ):
                return False
            time.sleep(0.05)
        self._urgent.clear()
        return True

    def run_id(self, token: str, seconds: float) -> str | None:
        """Return MLflow's id of a run; None while MLflow fails, or if none comes in ``seconds``."""
        ends = time.monotonic() + seconds
        while token not in self._runs:
            if self._stopped or self.failure is not None or time.monotonic() >= ends:
                return None
            time.sleep(0.01)
        return self._runs[token]

    def stop(self) -> None:
        """Let the thread end after the record that it sends now."""
        self._stopped = True
        self._new.set()
        self._urgent.set()

    def say(self, text: str) -> None:
        """Print one line about MLflow."""
        with suppress(OSError, ValueError):  # a terminal that is gone
            print(f"MLflow {public(self.uri)}: {text}", file=sys.stderr, flush=True)

    def _say_once(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self.say(text)

    def _work(self) -> None:
        pause = SHORTEST_PAUSE
        while not self._stopped:
            self._new.clear()
            try:
                more = recorder.advance(self.spool, self.uri)
            except Exception as error:  # MLflow raises many kinds
                if not self._told(error):
                    self._rest(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if more:
                pause = SHORTEST_PAUSE
                self._answers()
            else:
                self._new.wait()

    def _told(self, error: Exception) -> bool:
        """Handle an error and print it once; return True if the thread need not wait."""
        if not self._tried.is_set() and not server.is_transient(error):
            self.refusal, self._stopped = error, True
            self._tried.set()
            return True
        if server.refuses(error):
            self._say_once("refused", f"a record is left out: {server.error_text(error)}")
            return True
        self._fails(error)
        return False

    def _fails(self, error: Exception) -> None:
        self.failure = error
        what = f"{server.error_text(error)}; the job goes on, its run is caught up later"
        self._say_once("fails", what)
        self._tried.set()

    def _answers(self) -> None:
        self._written = time.monotonic()
        try:
            self._runs = self.spool.state().runs
        except FileNotFoundError:  # the watching process has sent all, and removed the spool
            self._stopped = True
        if self.failure is not None:
            self._say_once("answers", "answers again")
        self.failure = None
        self._tried.set()

    def _rest(self, seconds: float) -> None:
        """Wait before another try, less long once the job waits for the thread."""
        if self._stopped or self._urgent.wait(seconds):
            time.sleep(min(seconds, URGENT_PAUSE))
