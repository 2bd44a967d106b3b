"""Store all images alike: one decode, size, mode and encoder for every class.

    python -m jobs.normalize --help

The same as `manifpt normalize`; its code is manifpt/jobs/normalize.py.
"""

import sys

from manifpt.jobs.normalize import *  # noqa: F403
from manifpt.jobs.normalize import main

if __name__ == "__main__":
    sys.exit(main())
