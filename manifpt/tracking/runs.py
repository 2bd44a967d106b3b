"""The MLflow run of a job, and its child runs."""

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Any

from manifpt import __version__
from manifpt.outputs.provenance import git_commit, versions
from manifpt.redaction import public, public_values
from manifpt.tracking import server, watch
from manifpt.tracking.outbox import Outbox
from manifpt.tracking.spool_format import InputDataset, OpenRecord

# Seconds that a job waits for MLflow's first answer, for progress at its end, and for progress if
# it is stopped.
START_SECONDS = 20.0
END_SECONDS = 30.0
STOP_SECONDS = 5.0
ID_SECONDS = 10.0
PARENT = "mlflow.parentRunId"
# The run of the job around this one, if a job runs others.
_AROUND: ContextVar["Run | None"] = ContextVar("_AROUND", default=None)


def _now() -> int:
    return int(time.time() * 1000)


class Run:
    """A run in MLflow; methods that log return at once, even if MLflow fails."""

    def __init__(self, outbox: Outbox, token: str) -> None:
        self._outbox, self._token = outbox, token

    @property
    def uri(self) -> str:
        """The URI of the server or store."""
        return self._outbox.uri

    @property
    def id(self) -> str:
        """MLflow's id of the run; "" if MLflow has given none, because it fails or is slow."""
        return self._outbox.run_id(self._token, ID_SECONDS) or ""

    def require(self) -> str:
        """Send all records and return MLflow's id of the run; raise ManifptError if that fails."""
        if not self._outbox.flush(STOP_SECONDS) or not self.id:
            raise server.unreachable(self.uri, self._outbox.failure or TimeoutError("no answer"))
        return self.id

    def metrics(self, values: Mapping[str, object], step: int = 0) -> None:
        """Log the numbers among ``values``; any thread may call this."""
        now = _now()
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                row = (name, float(value), now, step)
                self._outbox.put({"op": "metrics", "run": self._token, "metrics": [row]})

    def params(self, values: Mapping[str, object]) -> None:
        """Log the parameters of the run."""
        shown = {k: str(public_values(v))[:500] for k, v in values.items()}
        self._outbox.put({"op": "params", "run": self._token, "params": shown})

    def tags(self, values: dict[str, str]) -> None:
        """Tag the run with facts that are known only after its start, such as Ray's job id."""
        tags = {f"manifpt.{k}": public(v) for k, v in values.items()}
        self._outbox.put({"op": "tags", "run": self._token, "tags": tags})

    def child(self, name: str, params: Mapping[str, object]) -> "Run":
        """Open a child run, which lasts until ``end`` is called on it."""
        made = Run(self._outbox, uuid.uuid4().hex)
        made._open(name, {"mlflow.source.name": name}, self._token)
        made.params(params)
        return made

    def other(self, run_id: str) -> "Run":
        """Return an existing run by MLflow's id, such as the run of an earlier start of the job."""
        found = Run(self._outbox, run_id)
        found._outbox.put({"op": "known", "run": run_id})
        return found

    def end(self, status: str) -> None:
        """End a run that ``child`` opened: FINISHED, KILLED or FAILED."""
        self._outbox.put({"op": "end", "run": self._token, "status": status, "at": _now()})

    def close(self, status: str) -> None:
        """End this run, and end its child runs that are still open as KILLED."""
        for token in self._outbox.spool.unended():
            if token != self._token:
                Run(self._outbox, token).end("KILLED")
        self.end(status)

    def document(self, name: str, value: Any) -> None:
        """Log a JSON document."""
        shown = public_values(value)
        self._outbox.put({"op": "document", "run": self._token, "name": name, "value": shown})

    def bytes(self, name: str, data: bytes) -> None:
        """Log a file with this name and content."""
        try:
            path = self._outbox.spool.keep(name, data)
        except OSError as error:
            self._outbox.lose(error)
        else:
            self._outbox.put({"op": "file", "run": self._token, "path": path})

    def inputs(self, described: Mapping[str, Any], context: str) -> None:
        """Log the input datasets that a manifest describes, each with its URI."""
        digest = described["content_key"][:8]
        inputs: list[InputDataset] = []
        for given in described["given"]:
            uri = given.split("=", 1)[-1]
            uri = uri if "://" in uri else str(Path(uri).resolve())
            inputs.append({"uri": uri, "name": given[:490], "digest": digest})
        self._outbox.put({"op": "inputs", "run": self._token, "inputs": inputs, "context": context})

    def model(self, uri: str) -> None:
        """Log the attributor in a folder as an MLflow model."""
        self._outbox.put({"op": "model", "run": self._token, "uri": uri})

    def _open(self, name: str, tags: dict[str, str], parent: str | None = None) -> None:
        record: OpenRecord = {
            "op": "open",
            "run": self._token,
            "name": name,
            "tags": tags,
            "parent": parent,
            "at": _now(),
        }
        self._outbox.put(record)


@contextmanager
def run(job: str, params: Mapping[str, object]) -> Iterator[Run]:
    """Open the run of a job; it ends as FINISHED, as KILLED on an interrupt, or as FAILED.

    Runs that are opened inside the block are its children in MLflow.
    """
    uri = server.connect()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.context.registry import resolve_tags

    outbox = Outbox(uri)
    opened = Run(outbox, uuid.uuid4().hex)
    watching = watch.start_watch(outbox.spool, uri)
    status = "FAILED"
    try:
        tags = {"manifpt.job": job, "manifpt.git_commit": git_commit()}
        around = _AROUND.get()
        tags |= {PARENT: around.id} if around is not None and around.id else {}
        opened._open(job, resolve_tags(tags | {"mlflow.source.name": f"jobs.{job}"}))
        local = uri.startswith("sqlite:")
        outbox.first_try(server.FIRST_USE_SECONDS if local else START_SECONDS)
        if outbox.refusal is not None:
            raise server.unreachable(uri, outbox.refusal)
        opened.params(params)
        opened.document("versions.json", {"manifpt": __version__, **versions()})
        inside = _AROUND.set(opened)
        try:
            yield opened
        finally:
            _AROUND.reset(inside)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except MlflowException as error:
        raise server.mlflow_error(uri, error) from error
    finally:
        opened.close(status)
        _leave(outbox, watching, STOP_SECONDS if status == "KILLED" else END_SECONDS)


def _leave(outbox: Outbox, watching: Popen[str], seconds: float) -> None:
    """Wait until all records are sent, and leave the rest to the process beside the job."""
    written = outbox.refusal is not None or outbox.flush(seconds)
    outbox.stop()
    if watching.stdin is not None:
        with suppress(OSError):
            watching.stdin.write(f"{watch.DONE}\n" if written else "")
            watching.stdin.close()
    if written:
        with suppress(TimeoutExpired):
            watching.wait(timeout=10)
    else:
        outbox.say(
            f"{outbox.spool.left()} records are not written; they lie in {outbox.spool.folder}, a "
            f"process in the background writes them if it answers within {watch.hours():g} h"
        )
