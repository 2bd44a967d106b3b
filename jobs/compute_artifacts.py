"""Project images onto a manifold and store their artifacts, a(x) = phi(x) - x*.

    python -m jobs.compute_artifacts --help

The same as `manifpt compute_artifacts`; its code is manifpt/jobs/compute_artifacts.py.
"""

import sys

from manifpt.jobs.compute_artifacts import *  # noqa: F403
from manifpt.jobs.compute_artifacts import main

if __name__ == "__main__":
    sys.exit(main())
