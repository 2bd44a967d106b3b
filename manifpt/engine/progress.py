"""The progress of a pipeline: printed lines while it works, and a status read from its output."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from manifpt import outputs, storage
from manifpt.engine import prometheus, work
from manifpt.errors import ManifptError
from manifpt.outputs import layouts, liveness, records
from manifpt.outputs.formats import ChunkRecord, RowCounts


class JobStatus(TypedDict):
    """The progress of a job; a number is None if it is not known, or not counted by this kind."""

    output: str
    kind: str
    state: Literal["running", "interrupted", "finished"]
    units: int | None
    units_done: int | None
    rows_in: int | None
    ok: int | None
    quarantined: int | None
    by_error: dict[str, int] | None
    rows_per_second: float | None
    seconds_left: float | None
    last_record_seconds_ago: NotRequired[float | None]
    written: NotRequired[str]


class _Times(NamedTuple):
    """Rows and units of a start, and the seconds since 1970 of its last record and its begin."""

    rows: int
    units: int
    last: float
    started: float


class Progress:
    """Lines of units done, rows, rows/s and time left, to stderr, at most one in ``every`` s.

    ``units`` are those of the whole job, of which ``finished`` were done by earlier starts.
    """

    def __init__(self, title: str, units: int, finished: int = 0, every: float = 5.0) -> None:
        self.title, self.units, self.every = title, units, every
        self.started = self.printed = time.monotonic()
        self.rows, self.finished, self.before = 0, finished, finished
        prometheus.emit("manifpt_units_left", units - finished)

    def add(self, record: ChunkRecord) -> None:
        """Count a record, and print a line if it is time."""
        self.rows += record["rows_in"]
        self.finished += record["last"]
        prometheus.emit("manifpt_units_left", self.units - self.finished)
        now = time.monotonic()
        if now - self.printed >= self.every:
            self.printed = now
            seconds = now - self.started
            left = time_left(seconds, self.finished - self.before, self.units - self.finished)
            rate = f"{self.rows / seconds:.0f} rows/s"
            self.line(rate if left is None else f"{rate}, {left:.0f} s left")

    def line(self, text: str) -> None:
        """Print the counts and ``text``."""
        done = f"{self.finished}/{self.units} units, {self.rows} rows"
        print(f"{self.title}: {done}, {text}", file=sys.stderr, flush=True)


def time_left(seconds: float, done: int, left: int) -> float | None:
    """Return the seconds that ``left`` units will take if ``done`` took ``seconds``."""
    return seconds / done * left if done else None


def status(output: str, now: float | None = None) -> JobStatus:
    """Return the progress of an output's job, from its stored units and records alone.

    ``state`` is running, interrupted or finished; ``rows_per_second`` and ``seconds_left`` are of
    the last start, None before its first record, and ``units`` while they are being listed.
    """
    output = storage.absolute(output)
    manifest = outputs.read(output)
    listed = work.Work.find(output)
    if manifest is not None:
        return _finished(output, manifest, listed)
    plan = layouts.read(output, layouts.PLAN)
    if plan is None:
        raise ManifptError(f"--status {output}: no job has written there; check the path")
    now = now or time.time()
    beat_uri = storage.join(output, layouts.ALIVE)
    try:
        beat = storage.read_json(beat_uri) if storage.exists(beat_uri) else {}
    except ManifptError:  # taken away between the two questions
        beat = {}
    try:
        counts, done, times = _counted(output, beat.get("started", 0.0))
    except ManifptError:
        manifest = outputs.read(output)
        if manifest is None:
            raise
        return _finished(output, manifest, listed)  # in between, the records have gone
    silence = now - beat.get("beat", 0.0)
    units = listed.units if listed else None
    seconds = times.last - times.started if times.rows else 0.0
    left = None
    if units is not None and seconds > 0:
        left = time_left(seconds, times.units, units - done)
    return {
        "output": output,
        "kind": plan["kind"],
        "state": "running" if silence < liveness.SILENCE_SECONDS else "interrupted",
        "units": units,
        "units_done": done,
        **counts,
        "rows_per_second": times.rows / seconds if seconds > 0 else None,
        "seconds_left": left,
        "last_record_seconds_ago": now - times.last if times.last else None,
    }


def _finished(output: str, manifest: Mapping[str, Any], listed: work.Work | None) -> JobStatus:
    units = listed.units if listed else None
    return {
        "output": output,
        "kind": manifest["kind"],
        "state": "finished",
        "units": units,
        "units_done": units,
        "rows_in": manifest.get("rows_in"),
        "ok": manifest.get("ok"),
        "quarantined": manifest.get("quarantined"),
        "by_error": manifest.get("by_error"),
        "rows_per_second": manifest.get("images_per_second"),
        "seconds_left": 0.0,
        "written": manifest["written"],
    }


def _counted(output: str, started: float) -> tuple[RowCounts, int, _Times]:
    """Return the counts of all records; and rows, units and times of those since ``started``.

    Without a sign of life, the last start is taken to begin where the records say it did.
    """
    found = records.Records(records.stored(output))
    closed, _ = records.by_unit(found)
    begun = started or max((record["started"] for record in found), default=0.0)
    rows, units, last = 0, 0, 0.0
    for record in found:
        last = max(last, record["written"])
        if record["started"] >= begun:
            rows += record["rows_in"]
            units += record["last"]
    return records.totals(found), len(closed), _Times(rows, units, last, begun)


def status_text(found: JobStatus) -> str:
    """Return a status as lines for people."""

    def shown(value: float | None, form: str = ".0f") -> str:
        return "?" if value is None else format(value, form)

    lines = [
        f"{found['output']}: {found['kind']}, {found['state']}",
        f"units        {shown(found['units_done'])}/{shown(found['units'])}",
        f"rows         {shown(found['rows_in'])}, of them {shown(found['ok'])} ok",
        f"rows/s       {shown(found['rows_per_second'], '.1f')}",
        f"seconds left {shown(found['seconds_left'])}",
        f"quarantined  {shown(found['quarantined'])}",
        *(f"  {code:<18} {count}" for code, count in (found["by_error"] or {}).items()),
    ]
    if found.get("last_record_seconds_ago") is not None:
        lines.append(f"last record  {found['last_record_seconds_ago']:.0f} s ago")
    return "\n".join(lines)
