"""The viewer's server: on the loopback interface alone, GET alone, and for its own names alone.

A page of the web can make a browser ask 127.0.0.1. It cannot read the answers, unless its own name
leads there, too (DNS rebinding): a request whose Host is another name is therefore refused.
"""

import contextlib
import socket
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manifpt.errors import ManifptError, public
from manifpt.images.decode import DecodeError
from manifpt.viewer import pages
from manifpt.viewer.output import CrawlOutput
from manifpt.viewer.pictures import PictureCache
from manifpt.viewer.scan import AddressError, Position

LOOPBACK = "127.0.0.1"
NAMES = [LOOPBACK, "localhost"]


class _Guard:
    """Refuses all methods but GET; adds the headers that every answer has."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.headers = [
            (b"content-security-policy", pages.policy().encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        if scope["type"] == "http" and scope["method"] != "GET":
            refused = PlainTextResponse("only GET is answered\n", 405, {"Allow": "GET"})
            await refused(scope, receive, sending)
        else:
            await self.app(scope, receive, sending)


class _Viewer:
    """The answers to requests about one output."""

    def __init__(self, crawl: CrawlOutput, pictures: PictureCache) -> None:
        self.crawl, self.pictures = crawl, pictures

    def page(self, request: Request) -> Response:
        """Answer with one of the pages."""
        given, crawl = dict(request.query_params), self.crawl
        makers: dict[str, Callable[[], bytes]] = {
            "/": lambda: pages.overview(crawl),
            "/rows": lambda: pages.rows(crawl, given, self.pictures),
            "/row": lambda: pages.row(crawl, given, self.pictures),
            "/groups": lambda: pages.groups(crawl, given),
            "/copies": lambda: pages.copies(crawl, given),
            "/quarantine": lambda: pages.quarantine(crawl, given),
        }
        try:
            return HTMLResponse(makers[request.url.path]())
        except ManifptError as error:
            text = pages.message_page(crawl, "This page cannot be shown", str(error))
            return HTMLResponse(text, _status(error))

    def image(self, request: Request) -> Response:
        """Answer with the picture of the image of a row, or of its nearest real."""
        crawl, real = self.crawl, request.url.path == "/real"
        try:
            place = Position.parse(request.query_params.get("at", ""))
            row = crawl.attributions.rows([place], ["uri", "neighbor_id"])[0]
            found = crawl.real(row["neighbor_id"]) if real else None
            if real and found is None:
                raise DecodeError("missing_image", "its manifold is gone")
            given = crawl.summary.get("inputs", {}).get("given", ())
            uri, inputs = (found.uri, found.inputs) if found else (row["uri"] or "", given)
            return Response(self.pictures.picture(uri, inputs).png, media_type="image/png")
        except DecodeError as error:
            return PlainTextResponse(f"{error.code}: {public(str(error))}\n", 404)
        except ManifptError as error:
            return PlainTextResponse(f"{error}\n", _status(error))


def _status(error: ManifptError) -> int:
    return 400 if isinstance(error, AddressError) else 500


def application(crawl: CrawlOutput, allow: tuple[str, ...] = ()) -> Starlette:
    """Return the ASGI application; ``allow`` are places of images besides the output's inputs."""
    viewer = _Viewer(crawl, PictureCache(allow))
    paths = ("/", "/rows", "/row", "/groups", "/copies", "/quarantine")
    routes = [Route(path, viewer.page, methods=["GET"]) for path in paths]
    routes += [Route(path, viewer.image, methods=["GET"]) for path in ("/image", "/real")]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=NAMES, www_redirect=False)
    return Starlette(routes=routes, middleware=[Middleware(_Guard), hosts])


def serve(app: Starlette, port: int, ready: Callable[[str], None]) -> None:
    """Serve on loopback until Ctrl-C; ``ready`` is told the address. Port 0 is any free port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            raise ManifptError(f"--port {port}: {error.strerror}; give another port") from None
        listener.listen()
        ready(f"http://{LOOPBACK}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            ws="none", timeout_graceful_shutdown=2,
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
