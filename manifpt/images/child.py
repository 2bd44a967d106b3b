"""Start and end a child process in which C code reads untrusted bytes.

The child gets only PATH and LD_LIBRARY_PATH of its parent's environment, and so no credentials. It
ends with its parent, because its input then ends.
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
READY = b"\x01"  # the first answer of a child
OUT_OF_MEMORY = 77  # the exit code of a child


def started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command with unbuffered pipes for stdin, stdout and stderr."""
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
        with contextlib.suppress(OSError):  # the user may have no room for large pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return process


def last_line(process: subprocess.Popen[bytes]) -> str:
    """Return the last line on stderr of a process that failed to start."""
    assert process.stderr
    lines = process.stderr.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")[:200]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it is still running."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe
        pipe.close()
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def silence() -> None:
    """Discard everything that libraries print in this process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nowhere, output)


def limit_memory(size: int) -> None:
    """Limit the memory of this process to ``size`` bytes of data, and turn core dumps off."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    resource.setrlimit(resource.RLIMIT_DATA, (size, most))
