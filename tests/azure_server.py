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
KEY = "Y2FuYXJ5LXNlY3JldC04NDEy"  # canary-secret-8412
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
    before = {name: os.environ.get(name) for name in (VARIABLE, "AZURITE_ACCOUNTS")}
    os.environ["AZURITE_ACCOUNTS"] = f"{ACCOUNT}:{KEY}"
    os.environ[VARIABLE] = (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    )
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_container()
        yield f"az://{CONTAINER}"
    finally:
        server.kill()
        server.wait()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


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
