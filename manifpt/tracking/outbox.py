"""The thread that records what a job has in its spool, and says once if MLflow fails."""

import sys
import threading
import time
from contextlib import suppress

from manifpt.errors import public
from manifpt.tracking import recorder, server
from manifpt.tracking.spool import Record, Spool

# Between two tries; pauses grow from the first to the last, and are URGENT at the job's end.
SHORTEST_PAUSE, LONGEST_PAUSE, URGENT_PAUSE = 1.0, 30.0, 2.0
# A model goes to a server that answers; it may be large.
MODEL_SECONDS = 600.0


class Outbox:
    """Takes records at once, whatever MLflow does, and writes them in their order.

    ``refusal`` is the error of the first try if MLflow will never take the run, ``failure`` that of
    the last try if it failed.
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
        """Say that records find no place on the disk."""
        self._say_once("lost", f"records are lost: {server.in_words(error)}")

    def first_try(self, seconds: float) -> None:
        """Wait until MLflow has answered or failed once, for at most some seconds."""
        if not self._tried.wait(seconds):
            self._fails(TimeoutError(f"no answer in {seconds:.0f} s"))

    def flush(self, seconds: float) -> bool:
        """Wait until all is written; give up once nothing was for some seconds."""
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
        """Return MLflow's id of a run; None if it has none in some seconds, or while it fails."""
        ends = time.monotonic() + seconds
        while token not in self._runs:
            if self._stopped or self.failure is not None or time.monotonic() >= ends:
                return None
            time.sleep(0.01)
        return self._runs[token]

    def stop(self) -> None:
        """Let the thread end after what it writes now."""
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
            except Exception as error:  # of MLflow many kinds
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
        """Say what an error is; return whether it is of one record, so that the next may follow."""
        if not self._tried.is_set() and not server.passes(error):
            self.refusal, self._stopped = error, True
            self._tried.set()
            return True
        if server.refuses(error):
            self._say_once("refused", f"a record is left out: {server.in_words(error)}")
            return True
        self._fails(error)
        return False

    def _fails(self, error: Exception) -> None:
        self.failure = error
        what = f"{server.in_words(error)}; the job goes on, its run is caught up later"
        self._say_once("fails", what)
        self._tried.set()

    def _answers(self) -> None:
        self._written, self._runs = time.monotonic(), self.spool.state().runs
        if self.failure is not None:
            self._say_once("answers", "answers again")
        self.failure = None
        self._tried.set()

    def _rest(self, seconds: float) -> None:
        """Wait before another try; less long once the job waits for it."""
        if self._stopped or self._urgent.wait(seconds):
            time.sleep(min(seconds, URGENT_PAUSE))
