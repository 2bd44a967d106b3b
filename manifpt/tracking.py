"""MLflow: every job is one run, which ends FINISHED, FAILED or KILLED whatever happens.

The server is MLFLOW_TRACKING_URI, else a local SQLite store (mlflow.db). A small process beside
the job ends its run as KILLED when the job is gone without having said how it ended.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from manifpt.errors import ManifptError, public
from manifpt.failures import reason as first_line
from manifpt.redaction import public_values

EXPERIMENT = "manifpt"
PACKAGES = ("manifpt", "ray", "torch", "torchvision", "faiss-cpu", "faiss-gpu", "numpy", "pillow")

# Runs beside a job, and outlives it.
_WATCH = "import sys; from manifpt import tracking; tracking.watch(*sys.argv[1:])"


def watch(run_id: str) -> None:
    """Wait for a job that is gone or says on the standard input that it has ended its run."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    if sys.stdin.readline().strip() != "ended":
        from mlflow import MlflowClient

        MlflowClient(uri).set_terminated(run_id, "KILLED")
        end_children(uri, run_id)


def end_children(uri: str, run_id: str) -> None:
    """End as KILLED the runs below a run that still go on."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    children = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([client.get_run(run_id).info.experiment_id], children):
        client.set_terminated(run.info.run_id, "KILLED")


def git_commit() -> str:
    """Return the commit of this code: MANIFPT_GIT_COMMIT, else the checkout's, else unknown."""
    given = os.environ.get("MANIFPT_GIT_COMMIT")
    if given:
        return given
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _unreachable(uri: str, error: Exception) -> ManifptError:
    reason = first_line(error)
    if getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE":
        return ManifptError(f"MLflow refuses a value of this job: {reason}; rename or shorten it")
    return ManifptError(
        f"MLFLOW_TRACKING_URI {uri}: {reason}; are the server and its artifact store up?"
    )


def connect() -> str:
    """Point MLflow at its store and return the URI; an unreachable server is an error now."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    import mlflow

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    if public(uri) != uri:  # which MLflow would print where a run ends
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    mlflow.set_tracking_uri(uri)
    try:
        mlflow.set_experiment(EXPERIMENT)
    except Exception as error:  # MLflow wraps connection errors in many types
        raise _unreachable(uri, error) from None
    return uri


class Run:
    """The MLflow run of a job."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.id = uri, run_id

    def metrics(self, values: dict[str, Any], step: int = 0) -> None:
        """Log the numbers among ``values``; any thread may call this."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [
            Metric(name, float(value), now, step)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        MlflowClient(self.uri).log_batch(self.id, metrics=numbers)

    def tags(self, values: dict[str, str]) -> None:
        """Tag the run with what is known only once it goes, such as Ray's ids of the job."""
        from mlflow import MlflowClient

        for name, value in values.items():
            MlflowClient(self.uri).set_tag(self.id, f"manifpt.{name}", public(value))

    def child(self, name: str, params: dict[str, Any]) -> "Run":
        """Open a run below this one, which lasts until ``end``."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient(self.uri)
        experiment = client.get_run(self.id).info.experiment_id
        tags = {"mlflow.parentRunId": self.id, "mlflow.source.name": name}
        made = Run(self.uri, client.create_run(experiment, tags=tags, run_name=name).info.run_id)
        texts = [Param(key, str(public_values(value))[:500]) for key, value in params.items()]
        client.log_batch(made.id, params=texts)
        return made

    def end(self, status: str) -> None:
        """End a run that ``child`` opened: FINISHED, KILLED or FAILED."""
        from mlflow import MlflowClient

        MlflowClient(self.uri).set_terminated(self.id, status)

    def document(self, name: str, value: Any) -> None:
        """Log a JSON document."""
        import mlflow

        mlflow.log_dict(public_values(value), name)

    def bytes(self, name: str, data: bytes) -> None:
        """Log a file by its content."""
        import mlflow

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            mlflow.log_artifact(str(path))

    def inputs(self, described: dict[str, Any], context: str) -> None:
        """Log the input datasets that a manifest describes, each with its place."""
        import mlflow
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        for given in described["given"]:
            uri = given.split("=", 1)[-1]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # several kinds of source would do
                source = resolve_dataset_source(uri if "://" in uri else str(Path(uri).resolve()))
            digest = described["content_key"][:8]
            mlflow.log_input(MetaDataset(source, name=given[:490], digest=digest), context=context)


@contextmanager
def run(job: str, params: dict[str, Any]) -> Iterator[Run]:
    """Open the run of a job; it ends FINISHED, or KILLED on an interrupt, or FAILED."""
    uri = connect()
    import mlflow
    from mlflow.exceptions import MlflowException

    tags = {
        "manifpt.job": job,
        "manifpt.git_commit": git_commit(),
        "mlflow.source.name": f"jobs.{job}",
    }
    active = mlflow.start_run(run_name=job, tags=tags)
    run_id = active.info.run_id
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    watching = subprocess.Popen(
        [sys.executable, "-c", _WATCH, run_id],
        # Not an argument: the list of processes is public, and a URI may hold a password.
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MLFLOW_TRACKING_URI": uri},
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    status = "FAILED"
    try:
        mlflow.log_params({k: str(public_values(v))[:500] for k, v in params.items()})
        mlflow.log_dict(versions(), "versions.json")
        yield Run(uri, run_id)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except MlflowException as error:
        raise _unreachable(uri, error) from error
    finally:
        with suppress(MlflowException):
            mlflow.end_run(status)
            if status != "FINISHED":
                end_children(uri, run_id)
            if watching.stdin is not None:
                watching.stdin.write("ended\n")
        if watching.stdin is not None:
            watching.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            watching.wait(timeout=10)
