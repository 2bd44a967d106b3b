"""MLflow's server or store: its address, its first use, and the meaning of its errors."""

import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from manifpt.errors import ManifptError, public

# The experiment of all runs, unless MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME is set.
EXPERIMENT = "manifpt"
# Seconds that one job waits for another to make the tables of a new SQLite store.
FIRST_USE_SECONDS = 60
# Values that the user has set take precedence. The job itself waits for none of these requests.
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
    """Tell MLflow the URI of its store and return it; no request is sent yet."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3", "requests"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    mlflow.set_tracking_uri(store())
    return store()


def store() -> str:
    """Return the URI of MLflow's server or store."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def command_of_pages() -> str:
    """Return a command that serves MLflow's pages, with this Python's own MLflow."""
    program = Path(sys.executable).parent / "mlflow"
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return f"{program} ui --backend-store-uri {public(store())}"


@lru_cache(maxsize=1)
def client(uri: str) -> tuple[Any, str]:
    """Return MLflow's client and the id of the experiment."""
    import mlflow

    with _first_use(uri):
        return mlflow.MlflowClient(uri), enter_experiment()


def enter_experiment() -> str:
    """Let runs and models belong to the user's experiment; return its id.

    One that is named is created if it is missing; one with an id must exist.
    """
    import mlflow

    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    name = None if given else os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    entered = str(mlflow.set_experiment(name, experiment_id=given).experiment_id)
    if not given:  # MLflow sets it, and the id would be another's in another store
        os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    return entered


@contextmanager
def _first_use(uri: str) -> Iterator[None]:
    """Let one process at a time create the tables of a SQLite store; MLflow has no lock."""
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


def is_transient(error: Exception) -> bool:
    """Tell whether the server fails for now and may answer later; False if a retry is no help."""
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
    """Tell whether an error concerns only this record, so that the next one can be sent."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return bool(error.error_code == "INVALID_PARAMETER_VALUE")
    return not isinstance(error, SQLAlchemyError) and not _of_storage(error)


def _of_storage(error: Exception) -> bool:
    """Tell whether an error comes from the network, a disk, or an artifact store on S3."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    return isinstance(error, OSError | Boto3Error | BotoCoreError | ClientError)


def unreachable(uri: str, error: Exception) -> ManifptError:
    """Return the error, in one line, of a job that needs MLflow and can't reach it."""
    return ManifptError(
        f"MLFLOW_TRACKING_URI {uri}: {error_text(error)}; are the server and its artifact store up?"
    )


def mlflow_error(uri: str, error: Exception) -> ManifptError:
    """Return the error, in one line, of a job in which MLflow raised ``error``."""
    if not refuses(error):
        return unreachable(uri, error)
    return ManifptError(f"MLflow refuses a value of this job: {error_text(error)}; rename it")


def error_text(error: Exception) -> str:
    """Return an error in a few words; for a network error, those of the underlying cause."""
    cause: Any = error
    while isinstance(cause, Exception):
        told = str(getattr(cause, "reason", "") or cause)
        cause = cause.__cause__ or cause.__context__
        for words in ("Connection refused", "timed out", "Name or service not known"):
            if words in told:
                return words.lower()
    lines = str(error).splitlines()
    return public(lines[0])[:200] if lines else type(error).__name__
