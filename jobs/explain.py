"""Explain the verdict on an image: heads, nearest reals, p-values, degradations.

    python -m jobs.explain --help

The same as `manifpt explain`; its code is manifpt/jobs/explain.py.
"""

import sys

from manifpt.jobs.explain import *  # noqa: F403
from manifpt.jobs.explain import main

if __name__ == "__main__":
    sys.exit(main())
