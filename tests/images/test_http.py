"""Downloads from a real server on loopback, which misbehaves in every way it can."""

import http.server
import ipaddress
import socket
import threading
import time
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifpt.images import http as web
from manifpt.images.addresses import _REFUSED_4, _REFUSED_6, _TRANSLATED, _UNICAST_6, is_public
from manifpt.images.decode import DecodeError
from manifpt.images.http import Limits, download

QUICK = Limits(connect=1, read=0.5, total=2, attempts=3, redirects=3, pause=0.01)
BODY = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """One behaviour a path; `seen` counts the requests of each."""

    seen: ClassVar[Counter] = Counter()

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.seen[path] += 1
        port = self.server.server_port
        if path == "/ok":
            self.answer(200, BODY)
        elif path == "/busy":
            self.answer(*((200, BODY) if self.seen[path] == 3 else (503,)))
        elif path == "/later":
            busy = self.seen[path] == 1
            self.answer(429, Retry_After="1") if busy else self.answer(200, BODY)
        elif path == "/down":
            self.answer(500)
        elif path == "/gone":
            self.answer(404)
        elif path == "/hop":
            self.answer(302, Location="/ok")
        elif path == "/loop":
            self.answer(302, Location="/loop")
        elif path == "/file":
            self.answer(302, Location="file:///etc/passwd")
        elif path == "/bucket":
            self.answer(307, Location="s3://manifpt/secret.png")
        elif path == "/inside":
            self.answer(301, Location=f"http://localhost:{port}/ok")
        elif path == "/announced":
            self.answer(200, b"", Content_Length=str(2**50))
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.drip(b"x" * 1024, 0)
        elif path == "/short":
            self.answer(200, BODY[:100], Content_Length="200")
        elif path == "/stuck":
            time.sleep(1)
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            self.drip(b"x", 0.1)
        elif path == "/headers":
            self.drip(b"X", 0.1)

    def drip(self, piece, pause):
        try:
            for _ in range(10_000):
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass


@pytest.fixture(scope="module")
def server():
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.daemon_threads = True
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()


def fetch(url, **options):
    return download(url, 2**16, **{"allow_private": True, "limits": QUICK, **options})


def failure(url, **options):
    with pytest.raises(DecodeError) as error:
        fetch(url, **options)
    return error.value.code


@pytest.mark.parametrize("path", ["/ok", "/ok?a=1&b=%20", "/hop", "/inside", "/busy", "/later"])
def test_what_arrives(server, path):
    assert fetch(server + path) == BODY


@pytest.mark.parametrize(
    ("path", "code", "requests"),
    [
        ("/gone", "download_failed", 1),
        ("/down", "download_failed", 3),
        ("/short", "download_failed", 3),
        ("/loop", "download_failed", 4),
        ("/file", "forbidden_address", 1),
        ("/bucket", "forbidden_address", 1),
        ("/announced", "too_many_bytes", 1),
        ("/endless", "too_many_bytes", 1),
        ("/stuck", "too_slow", 3),
        ("/drip", "too_slow", 1),
        ("/headers", "too_slow", 1),
    ],
)
def test_what_does_not_arrive(server, path, code, requests):
    before, started = Handler.seen[path], time.monotonic()
    assert failure(server + path) == code
    assert Handler.seen[path] - before == requests
    assert time.monotonic() - started < QUICK.total + 0.5


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/", "http://no-such-host.invalid/", "http://[::1", "http://a:b/",
     "http://" + "x" * 300 + "/", "http://me:canary%40localhost/", "http://canary%40localhost/"],
)  # fmt: skip
def test_what_is_not_there_or_no_url(url):
    with pytest.raises(DecodeError) as error:
        fetch(url)
    assert error.value.code == "download_failed"
    assert "canary" not in str(error.value)


def test_private_addresses_are_refused_unless_allowed(server):
    before = Handler.seen["/ok"]
    port = server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
        assert failure(f"http://{host}:{port}/ok", allow_private=False) == "forbidden_address"
    assert Handler.seen["/ok"] == before


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("10.0.0.1", False),
        ("172.16.9.9", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        # Metadata and wire servers of clouds.
        ("168.63.129.16", False),
        ("168.63.129.17", True),
        ("192.0.0.192", False),
        ("100.100.100.200", False),
        ("fd00:ec2::254", False),
        ("fd20:ce::254", False),
        # The special-purpose registries of IANA.
        ("192.0.0.9", False),
        ("192.0.2.1", False),
        ("192.88.99.1", False),
        ("192.88.98.1", True),
        ("198.18.0.1", False),
        ("198.51.100.1", False),
        ("203.0.113.1", False),
        ("223.255.255.255", True),
        ("fec0::1", False),
        ("100::1", False),
        ("100:0:0:1::1", False),
        ("2001:1::1", False),
        ("2001:2::1", False),
        ("2001:20::1", False),
        ("2001:db8::1", False),
        ("2001:4860:4860::8888", True),
        ("3fff::1", False),
        ("5f00::1", False),
        ("4000::1", False),
        # IPv4 inside of IPv6: compatible, local NAT64, Teredo, 6to4, ISATAP.
        ("::8.8.8.8", False),
        ("::ffff:168.63.129.16", False),
        ("64:ff9b::a83f:8110", False),
        ("64:ff9b:1::808:808", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
        ("2002:808:808::", False),
        ("2606:4700::5efe:10.0.0.1", False),
        ("2606:4700::200:5efe:10.0.0.1", False),
        ("2606:4700::5efe:8.8.8.8", True),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) == public


NETWORKS = [*_REFUSED_4, *_REFUSED_6, *_TRANSLATED, _UNICAST_6]
EDGES = [ip for network in NETWORKS for ip in (network[0], network[-1])]
BESIDE = [ip + 1 for ip in EDGES if int(ip) + 1 < 2**ip.max_prefixlen]
BESIDE += [ip - 1 for ip in EDGES if int(ip)]


@given(st.ip_addresses() | st.sampled_from([*EDGES, *BESIDE]))
@settings(max_examples=2000, deadline=None)
def test_what_is_public_is_global_for_python_too(ip):
    """But not the other way round: the own list is stricter."""
    if is_public(str(ip)):
        if ip.version == 6 and any(ip in network for network in _TRANSLATED):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        assert ip.is_global
        assert not ip.is_multicast
        assert not ip.is_reserved


def test_a_redirect_into_a_private_network_is_refused(server, monkeypatch):
    """The first host counts as public here, the second as what it is."""
    real = web.is_public
    monkeypatch.setattr(web, "is_public", lambda a: a == "127.0.0.1" or real(a))
    port = server.rpartition(":")[2]
    monkeypatch.setattr(
        Handler, "do_GET", lambda self: self.answer(302, Location=f"http://[::1]:{port}/ok")
    )
    assert failure(server + "/x", allow_private=False) == "forbidden_address"


def test_a_name_is_resolved_once_and_that_address_connected_to(monkeypatch):
    """A name server that says another address the second time (DNS rebinding) is not asked."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    asked, connected = [], []

    def resolve(host, port, *_, **__):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address, timeout):
        connected.append(address)
        raise ConnectionRefusedError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    once = Limits(attempts=1)
    assert (
        failure("http://rebind.test/x.png", allow_private=False, limits=once) == "download_failed"
    )
    assert asked == ["rebind.test"]
    assert connected == [("93.184.216.34", 80)]
