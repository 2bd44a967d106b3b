"""Write embeddings or artifacts as files that autofaiss and clip-retrieval read.

    python -m jobs.export --help

The same as `manifpt export`; its code is manifpt/jobs/export.py.
"""

import sys

from manifpt.jobs.export import *  # noqa: F403
from manifpt.jobs.export import main

if __name__ == "__main__":
    sys.exit(main())
