"""A proxy before an S3 server that fails, is slow, or says that credentials have expired."""

import http.client
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
# Headers of one connection, which are not passed on to the server behind.
HOP = {"connection", "keep-alive", "transfer-encoding"}


class FaultyS3:
    """Passes requests on; a share of them, by a seeded draw, gets 503 or waits ``slow`` seconds.

    ``expired`` turns every answer to 403 ExpiredToken; ``expire_after`` does so after this number
    of writes. ``refused`` are the status and the code that answer for objects whose URL ends so.
    """

    def __init__(self, port: int, share: float = 0.0, slow: float = 0.0, seed: int = 0) -> None:
        self.port, self.share, self.slow = port, share, slow
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.requests = self.failed = self.slowed = self.writes = 0
        self.expired, self.expire_after = False, None
        self.refused: dict[str, tuple[int, str]] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def pass_on(self):
                proxy.answer(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FaultyS3":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def drawn(self, method: str) -> str:
        """Draw what happens to the next request."""
        with self.lock:
            self.requests += 1
            self.writes += method == "PUT"
            if self.expire_after is not None and self.writes > self.expire_after:
                self.expired = True
            if self.expired:
                return "expired"
            if self.random.random() >= self.share:
                return "passed"
            fate = self.random.choice(["failed", "slowed"])
            self.failed += fate == "failed"
            self.slowed += fate == "slowed"
            return fate

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = request.path.partition("?")[0]
        refused = next((answer for end, answer in self.refused.items() if path.endswith(end)), None)
        fate = self.drawn(request.command)
        if refused is not None:
            self.send(request, refused[0], {}, ANSWER.format(refused[1], "Refused.").encode())
        elif fate == "expired":
            text = ANSWER.format("ExpiredToken", "The provided token has expired.")
            self.send(request, 403, {}, text.encode())
        elif fate == "failed":
            text = ANSWER.format("ServiceUnavailable", "Please try again.")
            self.send(request, 503, {}, text.encode())
        else:
            time.sleep(self.slow if fate == "slowed" else 0)
            behind = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP}
            behind.request(request.command, request.path, body, headers)
            found = behind.getresponse()
            headers = {k: v for k, v in found.getheaders() if k.lower() not in HOP}
            self.send(request, found.status, headers, found.read())
            behind.close()

    def send(self, request, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send an answer; one to HEAD has the length of what it does not send."""
        request.send_response_only(status)
        length = headers.pop("Content-Length", str(len(body)))
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", length if request.command == "HEAD" else len(body))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
