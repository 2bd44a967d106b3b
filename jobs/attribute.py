"""Find the generator of every image, with its probability and the nearest real.

    python -m jobs.attribute --help

The same as `manifpt attribute`; its code is manifpt/jobs/attribute.py.
"""

import sys

from manifpt.jobs.attribute import *  # noqa: F403
from manifpt.jobs.attribute import main

if __name__ == "__main__":
    sys.exit(main())
