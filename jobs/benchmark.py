"""Measure the speed of this engine and of its usual alternatives, in one run on the same cores.

    python -m jobs.benchmark --help

The same as `manifpt benchmark`; its code is manifpt/jobs/benchmark.py.
"""

import sys

from manifpt.jobs.benchmark import *  # noqa: F403
from manifpt.jobs.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
