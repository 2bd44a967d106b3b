"""Embed real images as a manifold: vectors in shards, with ids, under one manifest.

    python -m jobs.build_manifold --help

The same as `manifpt build_manifold`; its code is manifpt/jobs/build_manifold.py.
"""

import sys

from manifpt.jobs.build_manifold import *  # noqa: F403
from manifpt.jobs.build_manifold import main

if __name__ == "__main__":
    sys.exit(main())
