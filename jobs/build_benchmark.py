"""Train the zoo's generators on a real set and write a benchmark: samples, splits, card.

    python -m jobs.build_benchmark --help

The same as `manifpt build_benchmark`; its code is manifpt/jobs/build_benchmark.py.
"""

import sys

from manifpt.jobs.build_benchmark import *  # noqa: F403
from manifpt.jobs.build_benchmark import main

if __name__ == "__main__":
    sys.exit(main())
