"""Add real images to a finished manifold, or merge its small shards.

    python -m jobs.append --help

The same as `manifpt append`; its code is manifpt/jobs/append.py.
"""

import sys

from manifpt.jobs.append import *  # noqa: F403
from manifpt.jobs.append import main

if __name__ == "__main__":
    sys.exit(main())
