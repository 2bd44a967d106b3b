"""Plan jobs before they run: stages, bytes, hours, costs, wall time, requests, the bottleneck.

    python -m jobs.plan --help

The same as `manifpt plan`; its code is manifpt/jobs/plan.py.
"""

import sys

from manifpt.jobs.plan import *  # noqa: F403
from manifpt.jobs.plan import main

if __name__ == "__main__":
    sys.exit(main())
