"""Train an encoder on real images without labels (Barlow Twins), for a space of its own.

    python -m jobs.pretrain_embedding --help

The same as `manifpt pretrain_embedding`; its code is manifpt/jobs/pretrain_embedding.py.
"""

import sys

from manifpt.jobs.pretrain_embedding import *  # noqa: F403
from manifpt.jobs.pretrain_embedding import main

if __name__ == "__main__":
    sys.exit(main())
