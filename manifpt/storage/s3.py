"""S3 through s3fs, boto3 and pyarrow, with a limit on the time of retries.

If a server refuses connections, fails (5xx) or has too many requests (429), a request is tried
again for SECONDS, or for MANIFPT_S3_SECONDS if that is set. If the server never answers, it takes
one more READ_SECONDS, and pyarrow takes at most three minutes. Every LINE_SECONDS, a line says that
the process waits. Then the request raises ManifptError. A request that the server refuses for good,
for example because of wrong keys, raises an error at once.
"""

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import fsspec
import pyarrow.fs

from manifpt.errors import ManifptError, public
from manifpt.storage.protocol import ListingPage

SECONDS = 60.0
CONNECT_SECONDS = 4
READ_SECONDS = 20
ARROW_SECONDS = 10
# The longest pause between two tries.
LONGEST_PAUSE = 5.0
# The first line about a server comes so long after the start of its outage; others follow at
# intervals of LINE_SECONDS.
FIRST_LINE_SECONDS = 10
LINE_SECONDS = 15
# A failure so long after the one before counts as the start of another outage.
CALM_SECONDS = 60
SILENT = "it does not answer"
# The number of retries of s3fs if the content of an answer breaks off.
CONTENT_TRIES = 4
# S3's codes for a conditional write whose condition does not hold.
_UNMET = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"}


@dataclass
class _Outage:
    """The first and last failure of a server in an outage, and the time of the last line."""

    since: float
    last: float
    said: float


_outages: dict[str, _Outage] = {}
_lock = threading.Lock()


def asked_seconds() -> float:
    """Return the seconds of retries of a request: MANIFPT_S3_SECONDS, or else SECONDS."""
    given = os.environ.get("MANIFPT_S3_SECONDS", "")
    try:
        return float(given or SECONDS)
    except ValueError:
        raise ManifptError(f"MANIFPT_S3_SECONDS {given}: not a number; give seconds") from None


def read_seconds() -> float:
    """Return the seconds that one try waits for an answer."""
    return min(READ_SECONDS, max(1.0, asked_seconds()))


def config() -> dict[str, Any]:
    """Return botocore's settings, with its own retries off: ``asked_again`` decides on these."""
    return {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": read_seconds(),
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }


def filesystem() -> fsspec.AbstractFileSystem:
    """Return the filesystem of s3fs."""
    from aiobotocore.session import AioSession

    from manifpt.storage.http_session import HttpSession

    # The listing cache would hide files of other processes.
    found = fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        default_fill_cache=False,
        config_kwargs=config() | {"http_session_cls": HttpSession},
    )
    if found.session is None:
        session = AioSession()
        session.register("needs-retry.s3", asked_again)
        found.session, found._session_is_owned = session, False
        found.retries = CONTENT_TRIES
    return found


def client() -> Any:
    """Return a boto3 client."""
    import boto3
    from botocore.config import Config

    # Not the default session, which threads must not share and which keeps old credentials.
    made = boto3.Session().client("s3", config=Config(**config()))
    made.meta.events.register("needs-retry.s3", asked_again)
    return made


def arrow() -> pyarrow.fs.FileSystem:
    """Return the filesystem of pyarrow, which Ray's libraries need."""
    # It counts tries, not seconds: ten take a minute where connections are refused.
    tries = max(2, round(asked_seconds() / 6))
    return pyarrow.fs.S3FileSystem(
        # Arrow 25 takes keys and region from the AWS environment, but not the endpoint.
        endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL"),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=ARROW_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=tries),
    )


def pages(bucket: str, prefix: str, delimiter: str = "") -> Iterator[ListingPage]:
    """Yield the listing of a prefix, page by page."""
    listing = client().get_paginator("list_objects_v2")
    cut = {"Delimiter": delimiter} if delimiter else {}
    for page in listing.paginate(Bucket=bucket, Prefix=prefix, **cut):
        objects = [(entry["Key"], int(entry["Size"])) for entry in page.get("Contents", ())]
        yield ListingPage(objects, [entry["Prefix"] for entry in page.get("CommonPrefixes", ())])


def put(bucket: str, key: str, data: bytes, version: str | None) -> bool:
    """Write an object if its ETag is ``version``, or if there is none (None)."""
    from botocore.exceptions import ClientError

    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        client().put_object(Bucket=bucket, Key=key, Body=data, **condition)
    except ClientError as error:
        if error.response["Error"]["Code"] in _UNMET:
            return False
        raise
    return True


def get(bucket: str, key: str) -> tuple[bytes, str]:
    """Return an object's content and its ETag."""
    answer = client().get_object(Bucket=bucket, Key=key)
    return answer["Body"].read(), answer["ETag"]


def age(bucket: str, key: str) -> float | None:
    """Return the seconds since an object was written, by the server's clock; None without one."""
    try:
        answer = client().head_object(Bucket=bucket, Key=key)
    except Exception as error:
        if getattr(error, "response", {}).get("Error", {}).get("Code") == "404":
            return None
        raise
    now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - answer["LastModified"]).total_seconds())


def asked_again(
    attempts: int,
    request_dict: dict[str, Any],
    response: tuple[Any, dict[str, Any]] | None = None,
    caught_exception: Exception | None = None,
    **_: Any,
) -> float | None:
    """Return the pause before a request is sent again, or None if it needs no other try.

    botocore calls this after each try. Raises ManifptError once the server, or this request alone,
    has failed for long enough.
    """
    endpoint = "/".join(request_dict["url"].split("/")[:3])
    symptom = _symptom(response, caught_exception)
    now = time.monotonic()
    waited = getattr(caught_exception, "waited", read_seconds())
    began = now - waited if symptom == SILENT else now
    with _lock:
        if symptom is None:
            _outages.pop(endpoint, None)
            return None
        outage = _outages.get(endpoint)
        if outage is None or now - outage.last > CALM_SECONDS:
            outage = _outages[endpoint] = _Outage(began, now, began)
        outage.last = now
        alone = now - request_dict["context"].setdefault("manifpt_since", began)
        seconds = max(now - outage.since, alone)
        due = FIRST_LINE_SECONDS if outage.said == outage.since else LINE_SECONDS
        say = seconds < asked_seconds() and now - outage.said >= due
        if say:
            outage.said = now
    if say:
        print(f"waiting for {public(endpoint)} ({symptom}), {seconds:.0f} s", file=sys.stderr)
    if seconds >= asked_seconds():
        url = request_dict["url"].partition("?")[0]
        raise ManifptError(
            f"{url}: {symptom}, for {seconds:.0f} s; check AWS_ENDPOINT_URL and the network, then "
            "the same command goes on from here"
        )
    pause: float = min(LONGEST_PAUSE, 0.1 * 2**attempts)
    return pause * random.uniform(0.5, 1)  # noqa: S311


def _symptom(
    response: tuple[Any, dict[str, Any]] | None, caught_exception: Exception | None
) -> str | None:
    """Return in words how a server fails for now; None for an answer or a lasting refusal."""
    from botocore import exceptions

    if response is not None:
        status = int(response[0].status_code)
        code = response[1].get("Error", {}).get("Code", "")
        passes = status >= 500 or status == 429 or code in {"SlowDown", "RequestTimeout"}
        return f"it answers {status} {code}".rstrip() if passes else None
    if isinstance(caught_exception, exceptions.ReadTimeoutError | exceptions.ConnectTimeoutError):
        return SILENT
    if isinstance(caught_exception, exceptions.EndpointConnectionError):
        return "no connection"
    failed = exceptions.HTTPClientError, exceptions.ProxyConnectionError
    return "the connection breaks" if isinstance(caught_exception, failed) else None
