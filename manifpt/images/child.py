"""A process of its own for a reader's C code that meets the bytes of strangers: start and end.

It has no part of its parent's environment, so no credentials, and ends with its parent: its input
does.
"""

import contextlib
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENT = frozenset({"PATH", "LD_LIBRARY_PATH"})
PIPE_BYTES = 2**20
READY = b"\x01"  # its first answer
OUT_OF_MEMORY = 77  # its exit code


def started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command with pipes for its input, output and errors, none of them buffered."""
    paths = [str(Path(__file__).parents[2]), *(path or os.getcwd() for path in sys.path)]
    kept = {name: value for name, value in os.environ.items() if name in ENVIRONMENT}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=kept | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,  # an interrupt from the terminal is for the parent
    )
    for pipe in (process.stdin, process.stdout):
        assert pipe
        with contextlib.suppress(OSError):  # the user may have too many large ones
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


def last_line(process: subprocess.Popen[bytes]) -> str:
    """Return the last line that a process that did not start wrote to its errors."""
    assert process.stderr
    lines = process.stderr.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")[:200]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it has not ended."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe
        pipe.close()
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def silence() -> None:
    """Send what libraries print in this process to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)


def limit_memory(size: int) -> None:
    """Let this process have no more than ``size`` bytes of data; it leaves no core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))
