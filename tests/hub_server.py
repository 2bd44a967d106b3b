"""A hub of hf:// on loopback: the few answers of Hugging Face's that reading a data set takes."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0" * 40
DATASET = "owner/pictures"


class Hub(BaseHTTPRequestHandler):
    """Serves the folder ``server.root`` as the data set DATASET, at any revision."""

    def log_message(self, *_):
        """Say nothing."""

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        self._answer(json.loads(self.rfile.read(length) or b"{}"))

    def _answer(self, body=None):
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/datasets/{DATASET}", f"/datasets/{DATASET}/resolve/"
        if path.startswith(resolve):
            self._file(self.server.root / path.removeprefix(resolve).partition("/")[2])
        elif path.startswith(f"{api}/tree/"):
            inside = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self._tree(inside, "recursive=True" in self.path or "recursive=true" in self.path)
        elif path.startswith(f"{api}/paths-info/"):
            found = [self.server.root / name for name in body["paths"]]
            self._json([self._facts(one) for one in found if one.exists()])
        elif path == api or path.startswith(f"{api}/revision/"):
            self._json({"id": DATASET, "sha": SHA, "private": False, "siblings": []})
        else:
            self._json({"error": "Repository not found"}, 404, "RepoNotFound")

    def _tree(self, inside, recursive):
        folder = self.server.root / inside
        if not folder.is_dir():
            self._json({"error": "not found"}, 404, "EntryNotFound")
        else:
            self._json([self._facts(p) for p in sorted(folder.glob("**/*" if recursive else "*"))])

    def _facts(self, path):
        name = path.relative_to(self.server.root).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": SHA}
        return {"type": "file", "path": name, "oid": SHA, "size": path.stat().st_size}

    def _file(self, path):
        if not path.is_file():
            self._json({"error": "not found"}, 404, "EntryNotFound")
            return
        data, span = path.read_bytes(), self.headers.get("Range")
        whole = len(data)
        if span:
            start, _, end = span.removeprefix("bytes=").partition("-")
            data = data[int(start) : int(end or whole) + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{SHA}"')
        self.send_header("X-Repo-Commit", SHA)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, value, status=200, code=None):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_server(root: Path) -> Iterator[str]:
    """Serve a folder as a data set, and yield the address of the hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root = root
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
