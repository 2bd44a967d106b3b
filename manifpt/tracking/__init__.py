"""MLflow: every job is one run, which ends FINISHED, FAILED or KILLED whatever happens.

The server is MLFLOW_TRACKING_URI, else a local SQLite store (mlflow.db). What a job records goes
to a folder of this machine first (see ``Spool``), and from there to MLflow, by a thread of the
job's. A server that fails costs a job nothing: its records wait there, in their order. A small
process beside the job records what is left when the job is gone, and ends its run.
"""

from manifpt.tracking.provenance import git_commit, versions
from manifpt.tracking.runs import Run, run

__all__ = ["Run", "git_commit", "run", "versions"]
