"""Add generators to a trained attributor, from about fifty images each.

    python -m jobs.extend --help

The same as `manifpt extend`; its code is manifpt/jobs/extend.py.
"""

import sys

from manifpt.jobs.extend import *  # noqa: F403
from manifpt.jobs.extend import main

if __name__ == "__main__":
    sys.exit(main())
