"""Combine trained attributors of one space each by late fusion, without another training.

    python -m jobs.fuse --help

The same as `manifpt fuse`; its code is manifpt/jobs/fuse.py.
"""

import sys

from manifpt.jobs.fuse import *  # noqa: F403
from manifpt.jobs.fuse import main

if __name__ == "__main__":
    sys.exit(main())
