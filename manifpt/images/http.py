"""Downloads from the web, with limits on time and size, to public addresses alone.

A host's name is resolved once for each request, and that address is connected to if it is public:
a second answer of the name server (DNS rebinding) is never asked for. Each redirect is a request
of its own.
"""

import functools
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from manifpt import __version__
from manifpt.errors import public
from manifpt.images.addresses import is_public
from manifpt.images.decode import DecodeError

_PIECE = 2**16
_NO_NAME = "the URL's host is no name"
_SAFE = "/%:@!$&'()*+,;=~-._?"


@dataclass(frozen=True)
class Limits:
    """Seconds to connect, for each answer of the network, and in all; attempts, redirects."""

    connect: float = 5
    read: float = 15
    total: float = 60
    attempts: int = 3
    redirects: int = 5
    pause: float = 0.5


LIMITS = Limits()


class _TransientError(Exception):
    """A failure that another attempt, after ``pause`` seconds, may not have."""

    def __init__(self, code: str, message: str, pause: float = 0) -> None:
        super().__init__(message)
        self.code, self.pause = code, pause


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, even if its host now has another one."""

    def __init__(self, host: str, port: int, address: str, timeout: float, *, tls: bool) -> None:
        super().__init__(host, port, timeout=timeout)
        self.address, self.tls = address, tls
        self.wire: socket.socket | None = None
        self.default_port = 443 if tls else 80  # which is left out of the header Host

    def connect(self) -> None:
        """Connect to the address, and expect the certificate of the host."""
        self.sock = self.wire = socket.create_connection((self.address, self.port), self.timeout)
        if self.tls:
            self.sock = self.wire = _tls().wrap_socket(self.sock, server_hostname=self.host)

    def cut(self) -> None:
        """End a read that waits in another thread."""
        if self.wire is not None:
            with suppress(OSError):  # it may have ended by itself
                socket.socket.shutdown(self.wire, socket.SHUT_RDWR)  # below TLS, if there is any


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def addresses(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Resolve a host and return those of its addresses that may be connected to."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise _TransientError("download_failed", f"{host}: {error.strerror}") from None
        raise DecodeError("download_failed", f"{host}: {error.strerror}") from None
    except UnicodeError:
        raise DecodeError("download_failed", _NO_NAME) from None
    found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    allowed = [address for address in found if allow_private or is_public(address)]
    if not allowed:
        raise DecodeError("forbidden_address", f"{host} is {found[0]}, which is not public")
    return allowed


def download(
    url: str, max_bytes: int, *, allow_private: bool = False, limits: Limits = LIMITS
) -> bytes:
    """Return the content of an http(s) URL; any failure raises DecodeError with a code of ERRORS.

    Answers 429 and 5xx and failing connections are tried again, a little later each time.
    """
    deadline = time.monotonic() + limits.total
    for attempt in range(limits.attempts):
        try:
            return _followed(url, max_bytes, allow_private, limits, deadline, attempt)
        except _TransientError as error:
            pause = max(error.pause, limits.pause * 2**attempt)
            last = attempt + 1 == limits.attempts
            if last or time.monotonic() + pause >= deadline:
                raise DecodeError(error.code, str(error)) from None
            time.sleep(pause)
        except (ValueError, http.client.InvalidURL):
            raise DecodeError("download_failed", "this is not a URL") from None
    raise AssertionError("no attempt was made")


def _followed(
    url: str, max_bytes: int, allow_private: bool, limits: Limits, deadline: float, attempt: int
) -> bytes:
    for _ in range(limits.redirects + 1):
        parts = urlsplit(url)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise DecodeError("download_failed", "the URL's port is no number") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            scheme = f"{parts.scheme}:" if parts.scheme else "no scheme"
            raise DecodeError("forbidden_address", f"{scheme} is neither http: nor https:")
        if "%" in parts.hostname.partition(":")[0]:  # a password's part, if @ was percent-encoded
            raise DecodeError("download_failed", _NO_NAME)
        found = addresses(parts.hostname, port, allow_private=allow_private)
        left = deadline - time.monotonic()
        if left <= 0:
            raise DecodeError("too_slow", f"not done in {limits.total:g} s")
        connection = _Connection(
            parts.hostname,
            port,
            found[attempt % len(found)],
            min(limits.connect, left),
            tls=parts.scheme == "https",
        )
        target = quote(parts.path or "/", _SAFE)
        target += f"?{quote(parts.query, _SAFE)}" if parts.query else ""
        with _failures(parts.hostname, connection, limits, deadline):
            answer = _answer(connection, target, limits, max_bytes)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise DecodeError("download_failed", f"more than {limits.redirects} redirects")


def _answer(connection: _Connection, target: str, limits: Limits, max_bytes: int) -> bytes | str:
    """Return the content of an answer, or the URL that it redirects to."""
    connection.connect()
    connection.sock.settimeout(limits.read)
    agent = {"User-Agent": f"manifpt/{__version__}", "Accept-Encoding": "identity"}
    connection.request("GET", target, headers={**agent, "Accept": "image/*,*/*;q=0.5"})
    response = connection.getresponse()
    status, location = response.status, response.getheader("Location")
    if status in {301, 302, 303, 307, 308} and location:
        return location
    if status == 429 or status >= 500:
        wait = response.getheader("Retry-After", "")
        pause = float(wait) if wait.isascii() and wait.isdigit() else 0.0
        raise _TransientError("download_failed", f"HTTP {status} of {connection.host}", pause)
    if status != 200:
        raise DecodeError("download_failed", f"HTTP {status} of {connection.host}")
    return _content(response, max_bytes)


def _content(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    announced = response.length
    if announced is not None and announced > max_bytes:
        message = f"{announced} bytes announced, limit {max_bytes}"
        raise DecodeError("too_many_bytes", message, announced)
    data = bytearray()
    while piece := response.read1(_PIECE):
        data += piece
        if len(data) > max_bytes:
            raise DecodeError("too_many_bytes", f"more than {max_bytes} bytes")
    if announced is not None and len(data) < announced:
        raise _TransientError("download_failed", f"{len(data)} of {announced} bytes came")
    return bytes(data)


@contextmanager
def _failures(
    host: str, connection: _Connection, limits: Limits, deadline: float
) -> Iterator[None]:
    """Cut a connection when its time is over, close it, and turn errors into DecodeError.

    A socket's timeout is for one wait: a server that sends a byte now and then never exceeds it.
    """
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    timer.daemon = True
    timer.start()
    late = DecodeError("too_slow", f"not done in {limits.total:g} s")
    try:
        yield
    except (OSError, http.client.HTTPException, _TransientError) as error:
        if time.monotonic() >= deadline:
            raise late from None
        if isinstance(error, _TransientError):
            raise
        if isinstance(error, ssl.SSLCertVerificationError):
            raise DecodeError("download_failed", f"{host}: {error.verify_message}") from None
        code = "too_slow" if isinstance(error, TimeoutError) else "download_failed"
        reason = public(" ".join(str(error).split())) or type(error).__name__
        raise _TransientError(code, f"{host}: {reason}"[:200]) from None
    else:
        # A cut may also look like the end of an answer without a length.
        if time.monotonic() >= deadline:
            raise late
    finally:
        timer.cancel()
        connection.close()
