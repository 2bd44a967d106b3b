"""Run the paper's experiments on a benchmark, and write their tables as pages.

    python -m jobs.reproduce --help

The same as `manifpt reproduce`; its code is manifpt/jobs/reproduce.py.
"""

import sys

from manifpt.jobs.reproduce import *  # noqa: F403
from manifpt.jobs.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
