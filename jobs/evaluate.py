"""Measure an attributor on images that neither it nor its manifold has seen.

    python -m jobs.evaluate --help

The same as `manifpt evaluate`; its code is manifpt/jobs/evaluate.py.
"""

import sys

from manifpt.jobs.evaluate import *  # noqa: F403
from manifpt.jobs.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
