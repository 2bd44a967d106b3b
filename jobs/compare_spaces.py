"""Compare the accuracies of spaces, metrics and combinations, in one table.

    python -m jobs.compare_spaces --help

The same as `manifpt compare_spaces`; its code is manifpt/jobs/compare_spaces.py.
"""

import sys

from manifpt.jobs.compare_spaces import *  # noqa: F403
from manifpt.jobs.compare_spaces import main

if __name__ == "__main__":
    sys.exit(main())
