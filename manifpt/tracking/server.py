"""MLflow's server or store: its address, its first use, and what its errors mean."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from manifpt.errors import ManifptError, public

EXPERIMENT = "manifpt"
# How long one job waits for another to make the tables of a new SQLite store.
FIRST_USE_SECONDS = 60
# A user's own values win. The job itself waits for none of these requests.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PASSING = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "RESOURCE_CONFLICT",
    "ABORTED",
    "CANCELLED",
}


def connect() -> str:
    """Point MLflow at its store and return the URI; nothing is asked of it yet."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3", "requests"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return uri


@lru_cache(maxsize=1)
def client(uri: str) -> tuple[Any, str]:
    """Return MLflow's client and the id of our experiment, which is made if it is not there."""
    import mlflow

    with _first_use(uri):
        made = mlflow.MlflowClient(uri)
        return made, str(mlflow.set_experiment(EXPERIMENT).experiment_id)


@contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time make the tables of a SQLite store; MLflow itself does not."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = Path(uri.removeprefix("sqlite:///").partition("?")[0]).parent
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = -1
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        ends = time.monotonic() + FIRST_USE_SECONDS
        while descriptor >= 0 and time.monotonic() < ends:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:  # a filesystem without locks
                break
            else:
                break
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def passes(error: Exception) -> bool:
    """Tell whether an error is of a server that may answer later, and not of what it was asked."""
    from mlflow.exceptions import InvalidUrlException, MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, InvalidUrlException):
        return False
    if isinstance(error, MlflowException):
        return str(error.error_code) in _PASSING
    if isinstance(error, OperationalError):
        return "unable to open" not in str(error)
    return _of_storage(error)


def refuses(error: Exception) -> bool:
    """Tell whether an error is of this one record, so that the next one may be recorded."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return bool(error.error_code == "INVALID_PARAMETER_VALUE")
    return not isinstance(error, SQLAlchemyError) and not _of_storage(error)


def _of_storage(error: Exception) -> bool:
    """Tell whether an error is of the network, a disk, or an artifact store on S3."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return isinstance(error, OSError | Boto3Error | BotoCoreError | ClientError)


def unreachable(uri: str, error: Exception) -> ManifptError:
    """Return one line for an error of a job that can't do without MLflow."""
    return ManifptError(
        f"MLFLOW_TRACKING_URI {uri}: {in_words(error)}; are the server and its artifact store up?"
    )


def explained(uri: str, error: Exception) -> ManifptError:
    """Return one line for an error that MLflow raised in a job."""
    if not refuses(error):
        return unreachable(uri, error)
    return ManifptError(f"MLflow refuses a value of this job: {in_words(error)}; rename it")


def in_words(error: Exception) -> str:
    """Return an error in few words: of the network, the last cause."""
    cause: Any = error
    while isinstance(cause, Exception):
        told = str(getattr(cause, "reason", "") or cause)
        cause = cause.__cause__ or cause.__context__
        for words in ("Connection refused", "timed out", "Name or service not known"):
            if words in told:
                return words.lower()
    lines = str(error).splitlines()
    return public(lines[0])[:200] if lines else type(error).__name__
