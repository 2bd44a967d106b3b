"""Browse a finished output of attribute: rows by filter and order, their images and evidence.

    python -m jobs.view --help

The same as `manifpt view`; its code is manifpt/jobs/view.py.
"""

import sys

from manifpt.jobs.view import *  # noqa: F403
from manifpt.jobs.view import main

if __name__ == "__main__":
    sys.exit(main())
