"""Compare inputs and scores for the detection of generators that were not in training.

    python -m jobs.compare_open_set --help

The same as `manifpt compare_open_set`; its code is manifpt/jobs/compare_open_set.py.
"""

import sys

from manifpt.jobs.compare_open_set import *  # noqa: F403
from manifpt.jobs.compare_open_set import main

if __name__ == "__main__":
    sys.exit(main())
