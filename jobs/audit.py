"""Check whether file properties reveal the label, so that no format is learned as a generator.

    python -m jobs.audit --help

The same as `manifpt audit`; its code is manifpt/jobs/audit.py.
"""

import sys

from manifpt.jobs.audit import *  # noqa: F403
from manifpt.jobs.audit import main

if __name__ == "__main__":
    sys.exit(main())
