"""Put a finished attributor in MLflow's model registry, with a card, to be served and used by name.

    python -m jobs.register --help

The same as `manifpt register`; its code is manifpt/jobs/register.py.
"""

import sys

from manifpt.jobs.register import *  # noqa: F403
from manifpt.jobs.register import main

if __name__ == "__main__":
    sys.exit(main())
