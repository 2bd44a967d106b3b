"""The filesystem of adlfs, with a limit on every wait and with names as Azure has them.

adlfs gives the SDK no limits, and takes ``?`` and ``#`` in a name for parts of a URL. It writes
each file in two requests, so two processes that write the same name disturb each other.
"""

import asyncio
from typing import Any

from adlfs import AzureBlobFile, AzureBlobFileSystem
from azure.core.credentials import AccessToken, AzureSasCredential
from azure.core.exceptions import ServiceResponseTimeoutError
from azure.core.pipeline.transport import AioHttpTransport
from azure.storage.blob.aio import BlobServiceClient
from fsspec.asyn import sync, sync_wrapper

from manifpt.errors import ManifptError
from manifpt.storage import azure
from manifpt.storage.blob_filesystem import CONNECT_SECONDS, READ_SECONDS

# One request, which sends at most PART_BYTES, up to the headers of its answer.
REQUEST_SECONDS = 120
TOKEN_SECONDS = 60
PART_BYTES = 8 * 2**20
AT_ONCE = 4  # parts of one file
REMOVALS = 64  # files
TRIES_MORE = 4
# Pauses of 3, 5, 9 and 17 s, each a second more or less.
PAUSES = {"initial_backoff": 1, "increment_base": 2, "random_jitter_range": 1}
SCOPE = "https://storage.azure.com/.default"


class AzureTransport(AioHttpTransport):  # type: ignore[misc]
    """Connections that end a request if the server neither takes nor answers it."""

    async def send(self, request: Any, **config: Any) -> Any:
        """Send a request and return the answer."""
        return await _within(REQUEST_SECONDS, super().send(request, **config))


class AzureIdentity:
    """An identity of the SDK that gives a token within a minute, or none."""

    def __init__(self, identity: Any) -> None:
        self.identity = identity

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Return a token."""
        return await _within(TOKEN_SECONDS, self.identity.get_token(*scopes, **options))

    async def close(self) -> None:
        """Close its connections."""
        await self.identity.close()


async def _within(seconds: float, answer: Any) -> Any:
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError:
        raise ServiceResponseTimeoutError(f"no answer in {seconds:.0f} s") from None


class AzureFileSystem(AzureBlobFileSystem):  # type: ignore[misc]
    """Blobs of the account that the environment names; it holds no secret when it is pickled."""

    cachable = False  # manifpt.storage.azure does it, for all threads

    def __init__(self) -> None:
        super().__init__(
            blocksize=PART_BYTES,
            max_concurrency=AT_ONCE,
            assume_container_exists=True,
            use_listings_cache=False,  # it would hide files of other processes
        )

    def do_connect(self) -> None:
        """Make the client of the account."""
        limits = {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        tries = dict.fromkeys(("total", "connect", "read", "status"), TRIES_MORE)
        options: dict[str, Any] = {f"retry_{kind}": count for kind, count in tries.items()}
        options |= PAUSES | {"transport": AzureTransport(**limits)}
        if self.connection_string:
            try:
                self.service_client = BlobServiceClient.from_connection_string(
                    self.connection_string, **options
                )
            except ValueError as error:
                remedy = "copy it from the page Access keys of the storage account"
                text = f"AZURE_STORAGE_CONNECTION_STRING is not valid ({error}); {remedy}"
                raise ManifptError(text) from None
            return
        if not self.account_name:
            raise ManifptError(f"az:// needs an account; {azure.ACCOUNT}")
        credential = self.account_key
        if not credential and self.sas_token:
            credential = AzureSasCredential(self.sas_token.removeprefix("?"))
        if not credential and self.credential:
            credential = self._identity()
        self.account_url = f"https://{self.account_name}.blob.core.windows.net"
        self.service_client = BlobServiceClient(self.account_url, credential, **options)

    def _identity(self) -> AzureIdentity:
        """Return the identity that adlfs has chosen, if it gets a token now."""
        identity = AzureIdentity(self.credential)
        try:
            sync(self.loop, identity.get_token, SCOPE)
        except BaseException:
            sync(self.loop, identity.close)
            raise
        return identity

    @classmethod
    def _strip_protocol(cls, path: str | list[str]) -> str | list[str]:
        if isinstance(path, list):
            return [str(cls._strip_protocol(one)) for one in path]
        return path.removeprefix("az://").strip("/")

    async def _find(
        self, path: str, maxdepth: int | None = None, detail: bool = False, **options: Any
    ) -> dict[str, Any] | list[str]:
        found = await super()._find(path, detail=True, **options)
        if isinstance(found, list):  # adlfs's answer to the path of a file
            found = {name: await self._info(name) for name in found}
        if maxdepth:
            deepest = path.strip("/").count("/") + maxdepth
            found = {name: info for name, info in found.items() if name.count("/") <= deepest}
        return found if detail else sorted(found)

    def rm(self, path: str | list[str], recursive: bool = False, **_: Any) -> None:
        """Remove files, of which some may be gone, or folders; names are no patterns."""
        paths = [path] if isinstance(path, str) else path
        if recursive:
            paths = [name for one in paths for name in self.find(one)]
        sync(self.loop, self._rm_each, paths)

    async def _rm_each(self, paths: list[str]) -> None:
        for start in range(0, len(paths), REMOVALS):
            some = map(self._rm_file, paths[start : start + REMOVALS])
            for error in await asyncio.gather(*some, return_exceptions=True):
                if error is not None and not isinstance(error, FileNotFoundError):
                    raise error

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_type: str = "readahead",
        **options: Any,
    ) -> "_AzureFile":
        size = block_size or self.blocksize
        found = _AzureFile(self, path, mode, block_size=size, cache_type=cache_type, **options)
        if mode == "rb" and found.size is None:
            raise FileNotFoundError(path)
        return found


class _AzureFile(AzureBlobFile):  # type: ignore[misc]
    """A file of one part is written in one request, which no other process can disturb."""

    async def _async_upload_chunk(self, final: bool = False, **options: Any) -> None:
        if not final or self._block_list:
            await super()._async_upload_chunk(final, **options)
            return
        async with self.container_client.get_blob_client(self.blob) as blob:
            await blob.upload_blob(self.buffer.getvalue(), overwrite=True)

    _upload_chunk = sync_wrapper(_async_upload_chunk)
