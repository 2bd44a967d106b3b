"""The versions of the code that results depend on."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("manifpt", "ray", "torch", "torchvision", "faiss-cpu", "faiss-gpu", "numpy", "pillow")


def git_commit() -> str:
    """Return MANIFPT_GIT_COMMIT, or else the commit of the checkout, or else "unknown"."""
    given = os.environ.get("MANIFPT_GIT_COMMIT")
    if given:
        return given
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
