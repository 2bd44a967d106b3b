"""Azure Blob Storage through adlfs, which the extra ``azure`` installs.

The account is named by AZURE_STORAGE_CONNECTION_STRING, or else by AZURE_STORAGE_ACCOUNT_NAME with
AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, or the identity that DefaultAzureCredential
finds. A request that fails is tried up to five times, with pauses of half a minute together.
"""

import logging
import os
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.asyn import sync

from manifpt.errors import ManifptError
from manifpt.storage import blob_filesystem
from manifpt.storage.protocol import ListingPage

VARIABLES = (
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_ANON",
)
# Azure's codes for a conditional write whose condition does not hold.
_UNMET = {"BlobAlreadyExists", "ConditionNotMet"}
_FORBIDDEN = "AuthorizationPermissionMismatch"
# The SDK's errors for a key that is none, and for an identity that gets no token.
_UNSIGNED = {"AzureSigningError", "ClientAuthenticationError", "CredentialUnavailableError"}
ACCOUNT = (
    "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and, without az login or "
    "a managed identity, AZURE_STORAGE_ACCOUNT_KEY"
)


def filesystem() -> fsspec.AbstractFileSystem:
    """Return the filesystem of adlfs; without credentials raise the error of the first call."""
    given = (os.environ.get(name, "") for name in VARIABLES)
    return blob_filesystem.made(_filesystem, *given)


@cache
def _filesystem(process: int, *given: str) -> fsspec.AbstractFileSystem:
    try:
        from manifpt.storage.azure_filesystem import AzureFileSystem
    except ImportError:
        raise ManifptError("az:// needs adlfs; pip install 'manifpt[azure]'") from None
    # It logs the errors that it also raises, among them one for each credential that is not there.
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    return AzureFileSystem()


def arrow() -> pyarrow.fs.FileSystem:
    """Return a filesystem of pyarrow over that of adlfs."""
    return blob_filesystem.arrow(filesystem())


def pages(bucket: str, prefix: str, delimiter: str = "") -> Iterator[ListingPage]:
    """Yield the listing of a prefix, page by page."""
    fs = filesystem()
    container = fs.service_client.get_container_client(bucket)
    cut = {"delimiter": delimiter} if delimiter else {}
    answers = (container.walk_blobs if delimiter else container.list_blobs)(
        name_starts_with=prefix,
        include=["metadata"],
        results_per_page=blob_filesystem.PAGE_OBJECTS,
        **cut,
    ).by_page()
    while (items := sync(fs.loop, _page, answers)) is not None:
        blobs = [item for item in items if "size" in item]
        objects = [(blob.name, int(blob.size)) for blob in blobs if not _is_folder(blob)]
        yield ListingPage(objects, [item.name for item in items if "size" not in item])


async def _page(answers: Any) -> list[Any] | None:
    try:
        return [item async for item in await anext(answers)]
    except StopAsyncIteration:
        return None


def _is_folder(blob: Any) -> bool:
    """Tell whether a blob stands for a folder, as accounts with hierarchical names list them."""
    return "hdi_isfolder" in map(str.lower, blob.metadata or ())


def put(bucket: str, key: str, data: bytes, version: str | None) -> bool:
    """Write a blob if its ETag is ``version``, or if there is none (None)."""
    blob, condition = _blob(bucket, key), dict[str, Any](overwrite=version is not None)
    if version is not None:
        from azure.core import MatchConditions

        condition |= {"etag": version, "match_condition": MatchConditions.IfNotModified}
    try:
        _sync(blob.upload_blob, data, **condition)
    except Exception as error:
        gone = version is not None and _code(error) == "BlobNotFound"
        if gone or _code(error) in _UNMET:
            return False
        raise
    return True


def get(bucket: str, key: str) -> tuple[bytes, str]:
    """Return a blob's content and its ETag."""
    blob = _blob(bucket, key)

    async def read() -> tuple[bytes, str]:
        stream = await blob.download_blob()
        return await stream.readall(), stream.properties.etag

    found: tuple[bytes, str] = _sync(read)
    return found


def age(bucket: str, key: str) -> float | None:
    """Return the seconds since a blob was written, by Azure's clock; None without one."""
    dates = list[str]()

    def keep(answer: Any) -> None:
        dates.append(answer.http_response.headers["Date"])

    try:
        found = _sync(_blob(bucket, key).get_blob_properties, raw_response_hook=keep)
    except Exception as error:
        if status(error) == 404:
            return None
        raise
    now = parsedate_to_datetime(dates[-1])
    return max(0.0, float((now - found.last_modified).total_seconds()))


def _blob(bucket: str, key: str) -> Any:
    return filesystem().service_client.get_blob_client(bucket, key)


def _sync(call: Any, *given: Any, **options: Any) -> Any:
    """Return the answer of one of the SDK's coroutines, which run in a thread of fsspec."""
    return sync(filesystem().loop, call, *given, **options)


def _cause(error: BaseException) -> BaseException:
    """Return the SDK's error that one of adlfs hides, or else the error itself."""
    at: BaseException | None = error
    while at is not None and not type(at).__module__.startswith("azure."):
        at = at.__cause__
    return at or error


def _code(error: BaseException) -> str:
    """Return the code in Azure's answer, "" if there was none."""
    code = getattr(_cause(error), "error_code", None) or ""
    return str(getattr(code, "value", code))


def status(error: BaseException) -> int:
    """Return the HTTP status that an error of adlfs or the SDK stands for, 0 without an answer."""
    found = int(getattr(_cause(error), "status_code", None) or 0)
    return found or (404 if isinstance(error, FileNotFoundError) else 0)


def blames_object(error: Exception) -> bool:
    """Tell whether an error is of the one blob that was asked for; see ``blames_file``."""
    code = status(error)
    if code == 403:  # others are of an account or of its network
        return _code(error) == _FORBIDDEN
    return blob_filesystem.is_of_object(error, code)


def remedy(error: Exception) -> str | None:
    """Return in one line how to mend an error of storage; None if the error is of another kind."""
    code, cause = status(error), _cause(error)
    said = blob_filesystem.first_line(str(cause).splitlines())
    said = f"{_code(error)}: {said}" if _code(error) else said
    if code == 404:
        return "no such file, folder or container; check the path"
    if code == 403:
        role = "the role Storage Blob Data Contributor of an identity"
        check = f"check AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_ACCOUNT_KEY, or {role}"
        return f"access denied ({said}); {check}"
    if code == 401 or (not code and type(cause).__name__ in _UNSIGNED):
        return f"no valid Azure credentials ({said}); {ACCOUNT}"
    if _code(error) == "InvalidBlockList":
        return "another process writes this file, too; end it, and run the same command again"
    check = "the account's name and the network"
    return blob_filesystem.remedy(cause, code, said, "Azure Blob Storage", {"azure."}, check)
