"""Compute random rows of artifacts again by brute force, from the original images.

    python -m jobs.verify --help

The same as `manifpt verify`; its code is manifpt/jobs/verify.py.
"""

import sys

from manifpt.jobs.verify import *  # noqa: F403
from manifpt.jobs.verify import main

if __name__ == "__main__":
    sys.exit(main())
