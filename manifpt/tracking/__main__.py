"""Record in MLflow what a job has left in a folder; see ``watch``."""

import sys

from manifpt.tracking.watch import main

if __name__ == "__main__":
    main(sys.argv[1])
