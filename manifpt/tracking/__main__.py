"""Send the records that a job has left in a folder to MLflow; see ``watch``."""

import sys

from manifpt.tracking.watch import main

if __name__ == "__main__":
    main(sys.argv[1])
