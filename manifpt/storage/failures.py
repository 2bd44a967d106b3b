"""Errors of storage: their cause, and a line with the remedy."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from manifpt.errors import ManifptError, public
from manifpt.storage import azure, gcs, hf

# Errors of the storage, its credentials or this machine, and not of the requested file.
_OF_STORAGE = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
}
# The errors of s3fs for 503, 500, and no answer in time.
_FAILS = {errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_UNREACHABLE = {
    "EndpointConnectionError",
    "ProxyConnectionError",
    "SSLError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ReadTimeoutError",
    "HTTPClientError",
    "ResponseStreamingError",
    "ClientPayloadError",
}
# Codes of S3 about the caller, or about itself, for any object.
_OF_SERVICE = _EXPIRED | {
    "AccountProblem",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "InvalidToken",
    "NotSignedUp",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "KMS.ThrottlingException",
}
# Answers to HEAD, which have no body, for bad credentials or for any caller.
_UNSAID = {"400", "403"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def _of_library(uri: str) -> ModuleType | None:
    """Return the module for the errors of a URI's store, if there is one."""
    return {"gs": gcs, "az": azure, "hf": hf}.get(uri.partition("://")[0])


def _answer(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the code of S3's answer; 0 and "" if there was none."""
    at: BaseException | None = error
    while at is not None and not getattr(at, "response", None):
        at = at.__cause__
    answer = getattr(at, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(answer.get("Error", {}).get("Code", ""))


def _code(error: BaseException) -> str:
    """Return the code in S3's answer, or that in an error of s3fs; "" if there is none."""
    return _answer(error)[1]


def no_such_range(error: Exception, uri: str) -> bool:
    """Tell whether an object store was asked for bytes that an object does not have."""
    store = _of_library(uri)
    return (store.status(error) if store else _answer(error)[0]) == 416


def blames_file(error: Exception, uri: str) -> bool:
    """Tell whether an error is of this one file, so that another try would fail, too.

    An error of the storage as a whole, such as expired credentials or a failing server, must stop a
    job: it would turn good images into rows of errors.
    """
    store = _of_library(uri)
    if store:
        return bool(store.blames_object(error))
    if not _is_s3(uri):
        # A name that no file can have is a ValueError.
        of_name = isinstance(error, ValueError)
        return of_name or (isinstance(error, OSError) and error.errno not in _OF_STORAGE)
    status, code = _answer(error)
    if status:
        refused = 300 <= status < 500 and status not in {401, 407, 408, 429}
        return refused and code not in _OF_SERVICE | _UNSAID
    of_name = isinstance(error, UnicodeError) or type(error).__name__ == "ParamValidationError"
    return of_name or isinstance(error, FileNotFoundError)


@contextmanager
def explain_errors(uri: str) -> Iterator[None]:
    """Turn the storage errors that a user can mend into a ManifptError with the remedy."""
    try:
        yield
    except ManifptError:
        raise
    except Exception as error:
        store = _of_library(uri)
        remedy = store.remedy(error) if store else None
        if remedy is not None:
            raise ManifptError(f"{uri}: {public(remedy)}") from None
        with _explained(uri):
            raise


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Do the same for local paths and S3."""
    try:
        yield
    except ManifptError:
        raise
    except FileNotFoundError:
        raise ManifptError(f"{uri}: no such file or folder; check the path") from None
    except PermissionError as error:
        if _code(error) in _EXPIRED:
            remedy = "renew them; the same command goes on from here"
            raise ManifptError(f"{uri}: the AWS credentials have expired; {remedy}") from None
        remedy = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        remedy = remedy if _is_s3(uri) else "check the permissions of the path"
        raise ManifptError(f"{uri}: access denied ({reason(error)}); {remedy}") from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise
        if error.errno in _FULL:
            remedy = "free some; the same command goes on from here"
            raise ManifptError(f"{uri}: no space left ({reason(error)}); {remedy}") from None
        if _is_s3(uri) and (error.errno in _FAILS or isinstance(error, TimeoutError)):
            what = "does not answer" if isinstance(error, TimeoutError) else "fails"
            remedy = "try again later; the same command goes on from here"
            raise ManifptError(
                f"{uri}: the server {_endpoint()} {what} ({reason(error)}); {remedy}"
            ) from None
        raise ManifptError(f"{uri}: {reason(error)}; check the path") from None
    except Exception as error:
        if _code(error):  # boto3's, which s3fs has as an OSError
            from s3fs.errors import translate_boto_error

            with explain_errors(uri):
                raise translate_boto_error(error) from error
        name = type(error).__name__
        if name in {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"}:
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            raise ManifptError(f"{uri}: no AWS credentials; {remedy}") from None
        if name in _UNREACHABLE:
            remedy = "check AWS_ENDPOINT_URL and the network; the same command goes on from here"
            raise ManifptError(f"{uri}: cannot reach endpoint {_endpoint()}; {remedy}") from None
        raise


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL", "the AWS default")


# Names of errors of numpy, torch, pyarrow, faiss and Ray, or texts of errors that come from another
# process.
_NO_MEMORY = re.compile(
    r"MemoryError|OutOfMemory|[Cc]an(?:no|')t allocate memory|out of memory|bad_alloc"
)


def out_of_memory(error: BaseException) -> ManifptError | None:
    """Return one line for an error of exhausted memory, else None."""
    names = [f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__]
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    found = next((line for line in str(error).splitlines() if _NO_MEMORY.search(line)), None)
    if not (full or isinstance(error, MemoryError) or found or _NO_MEMORY.search(" ".join(names))):
        return None
    said = found.strip()[:200] if found else reason(error)
    return ManifptError(
        f"out of memory ({said}); give the job a machine or container with more, or fewer "
        "processes or images at a time (--num-actors, --num-workers, --batch-size); the same "
        "command goes on from here"
    )


def reason(error: BaseException) -> str:
    """Return an error's first line."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return public(text.splitlines()[0])[:200] if text else type(error).__name__
