"""Show a finished output as one HTML file: results, examples, fingerprints, evidence.

    python -m jobs.report --help

The same as `manifpt report`; its code is manifpt/jobs/report.py.
"""

import sys

from manifpt.jobs.report import *  # noqa: F403
from manifpt.jobs.report import main

if __name__ == "__main__":
    sys.exit(main())
