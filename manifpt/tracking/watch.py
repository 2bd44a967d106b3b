"""The process beside a job that sends the records left at the job's end, and ends its runs."""

import os
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from manifpt.tracking.spool import Spool

# Hours after the job's end during which it keeps asking a server that does not answer.
HOURS = 12.0
# The command that starts it; users may call it, too, for a folder that was left behind.
COMMAND = (sys.executable, "-m", "manifpt.tracking")
DONE = "done"
PAUSE_SECONDS = 10.0


def hours() -> float:
    """Return the hours that it keeps asking after the job: MANIFPT_MLFLOW_HOURS, or else HOURS."""
    with suppress(ValueError):
        return float(os.environ.get("MANIFPT_MLFLOW_HOURS", HOURS))
    return HOURS


def start_watch(spool: Spool, uri: str) -> subprocess.Popen[str]:
    """Start the process; it waits for DONE on its standard input, or for the end of that."""
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
    """Send the rest of a spool, and end open runs as KILLED; return False if time runs out."""
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
        except Exception as error:  # MLflow raises many kinds
            if server.refuses(error):
                continue
            if time.monotonic() >= ends:
                return False
            time.sleep(PAUSE_SECONDS)


def main(folder: str) -> None:
    """Wait for the end of a job, and send the records that it left."""
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
    """Close stderr if it is a pipe: its reader waits until the last writer has closed it."""
    with suppress(OSError):
        if not stat.S_ISFIFO(os.fstat(2).st_mode):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
