"""The connections of s3fs, with a limit on every wait.

aiohttp limits the time in which an answer is read, but not that in which a request is sent: a
server that takes a connection and then stops would be waited for without end.
"""

import asyncio
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from botocore.exceptions import ReadTimeoutError

from manifpt.storage import s3

# The least rate of a connection; a slower one counts as dead.
BYTES_PER_SECOND = 2**18


class HttpSession(AIOHTTPSession):  # type: ignore[misc]
    """A session that ends a request if the server neither takes nor answers it."""

    async def send(self, request: Any) -> Any:
        """Send a request and return the answer, of which the headers have come."""
        headers = request.headers
        size = int(headers.get("Content-Length") or headers.get("X-Amz-Decoded-Content-Length", 0))
        seconds = s3.CONNECT_SECONDS + s3.read_seconds() + size / BYTES_PER_SECOND
        try:
            return await asyncio.wait_for(super().send(request), seconds)
        except TimeoutError as error:
            silence = ReadTimeoutError(endpoint_url=request.url, error=error)
            silence.waited = seconds
            raise silence from None
