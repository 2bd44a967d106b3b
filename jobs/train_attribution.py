"""Train a network to tell generators apart by the artifacts of their images.

    python -m jobs.train_attribution --help

The same as `manifpt train_attribution`; its code is manifpt/jobs/train_attribution.py.
"""

import sys

from manifpt.jobs.train_attribution import *  # noqa: F403
from manifpt.jobs.train_attribution import main

if __name__ == "__main__":
    sys.exit(main())
