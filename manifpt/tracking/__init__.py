"""MLflow: every job is one run, which always ends FINISHED, FAILED or KILLED.

The server is MLFLOW_TRACKING_URI, or else a local SQLite store (mlflow.db). A job first writes its
records to a folder of this machine (see ``Spool``), and a thread of the job sends them from there
to MLflow. If the server fails, the job goes on, and the records wait in the folder, in their order.
A small process beside the job sends the records that are left when the job has ended, and ends the
job's run.
"""

from manifpt.tracking.runs import Run, run

__all__ = ["Run", "run"]
