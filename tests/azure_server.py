"""A server of az:// on loopback: Azurite, an npm package that these tests do not install."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manifpt.throughput.seaweed import free_ports

CONTAINER = "manifpt"
VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = "tester"
KEY = "canarysecret8412azurekey"  # it is base64, too
READY_SECONDS = 60


def binary() -> str | None:
    """Return the path of the server, or None: AZURITE names it if it is not on the PATH."""
    return shutil.which(os.environ.get("AZURITE", "azurite-blob"))


@contextmanager
def azure_server(folder: Path) -> Iterator[str]:
    """Serve a container from a folder and yield its URI; in the block the environment names it."""
    (port,) = free_ports(1)
    command = [
        binary() or "azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", str(port),
        "--location", str(folder), "--silent", "--disableTelemetry",
        "--skipApiVersionCheck",  # the SDK is often newer
    ]  # fmt: skip
    before = os.environ.get(VARIABLE)
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
    )  # fmt: skip
    try:
        os.environ[VARIABLE] = connection_string(f"http://127.0.0.1:{port}")
        _make_container()
        yield f"az://{CONTAINER}"
    finally:
        server.kill()
        server.wait()
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def connection_string(address: str) -> str:
    """Return what names a server, its account and its key."""
    account = f"AccountName={ACCOUNT};AccountKey={KEY}"
    return f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={address}/{ACCOUNT}"


def _make_container() -> None:
    from azure.core.exceptions import ServiceRequestError
    from azure.storage.blob import BlobServiceClient

    ends = time.monotonic() + READY_SECONDS
    while time.monotonic() < ends:
        try:
            BlobServiceClient.from_connection_string(
                os.environ[VARIABLE], retry_total=0
            ).create_container(CONTAINER)
        except ServiceRequestError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("azurite: no server")
