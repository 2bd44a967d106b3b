"""The commit and the versions of the code that results depend on."""

import os
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

from manifpt import __version__

PACKAGES = ("ray", "torch", "torchvision", "faiss-cpu", "faiss-gpu", "numpy", "pillow")
UNKNOWN = "unknown"
GIT_SECONDS = 10.0


class MachineFacts(TypedDict):
    """A machine, and the versions of libraries; ``gpu`` is None without one."""

    cpu: str
    cores: int | None
    threads: int
    python: str
    numpy: str
    torch: str
    faiss: str
    gpu: str | None
    manifpt: str
    date: str


@cache
def git_commit() -> str:
    """Return MANIFPT_GIT_COMMIT, or else the commit of the checkout, or else "unknown".

    A checkout that does not track this file, such as one around a virtual environment, is another
    project's.
    """
    given = os.environ.get("MANIFPT_GIT_COMMIT")
    if given:
        return given
    file = Path(__file__)
    try:
        _git(file.parent, "ls-files", "--error-unmatch", "--", file.name)
        return _git(file.parent, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or no answer in time
        return UNKNOWN


def _git(folder: Path, *words: str) -> str:
    """Return the answer of git in a folder; raise if it fails."""
    command = ["git", "-C", str(folder), *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS)
    return found.stdout.strip()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the other packages that results depend on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def environment(threads: int) -> MachineFacts:
    """Return the facts of the machine that results of timing depend on."""
    import faiss
    import numpy as np
    import torch

    cpu = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "faiss": faiss.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "manifpt": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }
