"""Find the best space, metric, projection and training for a benchmark, within a budget.

    python -m tuning.sweep --help

The same as `manifpt sweep`; its code is manifpt/tuning/sweep.py.
"""

import sys

from manifpt.tuning.sweep import *  # noqa: F403
from manifpt.tuning.sweep import main

if __name__ == "__main__":
    sys.exit(main())
