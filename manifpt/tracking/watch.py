"""The process beside a job that records what is left when the job is gone, and ends its runs."""

import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from manifpt.tracking.spool import Spool

# For so long after its job's end it asks a server that does not answer.
HOURS = 12.0
# Starts it, and may be called by hand for a folder that it has left behind.
COMMAND = (sys.executable, "-m", "manifpt.tracking")
DONE = "done"
PAUSE_SECONDS = 10.0


def hours() -> float:
    """Return for how long it asks after its job's end: MANIFPT_MLFLOW_HOURS, else HOURS."""
    with suppress(ValueError):
        return float(os.environ.get("MANIFPT_MLFLOW_HOURS", HOURS))
    return HOURS


def start(spool: Spool, uri: str) -> subprocess.Popen[str]:
    """Start the process; it waits for DONE on its standard input, or for the input's end."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [*COMMAND, str(spool.folder)],
        # Not an argument: the list of processes is public, and a URI may hold a password.
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MLFLOW_TRACKING_URI": uri},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def finish(spool: Spool, seconds: float) -> bool:
    """Record the rest of a spool; runs that nobody has ended are KILLED. False: out of time."""
    from manifpt.tracking import recorder, server

    uri = server.connect()
    at = int(time.time() * 1000)
    for token in spool.unended():
        spool.append({"op": "end", "run": token, "status": "KILLED", "at": at})
    ends = time.monotonic() + seconds
    while True:
        try:
            if not recorder.advance(spool, uri):
                return True
        except Exception as error:  # of MLflow many kinds
            if server.refuses(error):
                continue
            if time.monotonic() >= ends:
                return False
            time.sleep(PAUSE_SECONDS)


def main(folder: str) -> None:
    """Watch over the job of a spool."""
    spool = Spool(folder)
    if sys.stdin.readline().strip() != DONE:
        _let_go_of_pipes()
        if not finish(spool, 3600 * hours()):
            print(
                f"MLflow: no answer in {hours():g} h, {spool.left()} records are left; once it is "
                f"up: {' '.join(COMMAND)} {folder} </dev/null",
                file=sys.stderr,
                flush=True,
            )
            return
    spool.remove()


def _let_go_of_pipes() -> None:
    """Leave a pipe that the job wrote to: who reads it waits until the last writer is gone."""
    with suppress(OSError):
        if not stat.S_ISFIFO(os.fstat(2).st_mode):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
