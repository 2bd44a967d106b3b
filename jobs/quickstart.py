"""Run the main jobs, one after the other, on the shipped benchmark; print a table of accuracies.

    python -m jobs.quickstart --help

The same as `manifpt quickstart`; its code is manifpt/jobs/quickstart.py.
"""

import sys

from manifpt.jobs.quickstart import *  # noqa: F403
from manifpt.jobs.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
