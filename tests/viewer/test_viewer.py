"""The viewer: who may ask, what is shown, which images are read, and that ids do nothing."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pyarrow as pa
import pytest
from conftest import draw, png, write_tar
from handmade_outputs import HOSTILE, columns, published
from PIL import Image
from starlette.testclient import TestClient

from manifpt import storage
from manifpt.attribution.crawl.duplicates import DUPLICATES
from manifpt.attribution.crawl.grouping import GROUP_ROWS
from manifpt.attribution.crawl.leaks import LEAKS
from manifpt.attribution.crawl.stage import ATTRIBUTIONS
from manifpt.attribution.crawl.verdicts import verdicts
from manifpt.attribution.unknown.decision import DECISIONS
from manifpt.jobs import view
from manifpt.viewer import output as crawl_output
from manifpt.viewer import pages
from manifpt.viewer.output import CrawlOutput
from manifpt.viewer.pictures import AllowedPlaces
from manifpt.viewer.web_server import application

COUNT = 180
CLASSES = ["real", "stripes", '"><b>blocks</b>']
ROOT = Path(__file__).parents[2]


def places(folder: Path) -> list[str]:
    """URIs of rows: files, members of a tar, the web, and files that are broken or elsewhere."""
    inputs = folder / "input"
    (inputs / "sub").mkdir(parents=True)
    for number in range(20):
        Image.fromarray(draw("real", number)).save(inputs / f"{number:03d}.png")
    Image.fromarray(draw("real", 3, 600)[:, :400]).save(inputs / "large.png")
    Image.fromarray(draw("real", 99)).save(folder / "secret.png")
    (inputs / "broken.png").write_bytes(png("real", 0)[:60])
    os.symlink(folder / "secret.png", inputs / "link.png")
    write_tar(inputs / "a.tar", [(f"{n}.png", png("stripes", n)) for n in range(9)])
    odd = ["large.png", "broken.png", "gone.png", "link.png", "../secret.png"]
    files = [f"{number:03d}.png" for number in range(20)]
    found = [str(inputs / name) for name in files + odd]
    found = [uri.replace("/input/../", "/input/sub/../../") for uri in found]
    found += [f"{inputs}/a.tar#{n}.png" for n in range(9)]
    return [*found, "https://example.org/<script>.png", "s3://elsewhere/x.png"]


def rows_of(folder: Path) -> list[dict]:
    rng, uris = np.random.default_rng(5), places(folder)
    rows = []
    for number in range(COUNT):
        order = rng.permutation(len(CLASSES))
        top = [{"source": CLASSES[n], "probability": 0.8 / (k + 1)} for k, n in enumerate(order)]
        name = HOSTILE[number % len(HOSTILE)].replace("/", "|")
        row = {"id": f"g{number % 7}/{number:03d}{name}", "uri": uris[number % len(uris)]}
        row |= {"sha256": f"{number:064x}", "status": "ok", "top_k": top}
        row |= {"prediction": top[0]["source"], "probability": round(rng.uniform(), 2)}
        row |= {"decision": DECISIONS[rng.integers(4)], "neighbor_id": "r7", "distance": 2.5}
        scored = number % 10 > 0
        row |= {"unknown_score": round(rng.normal(), 1) if scored else None, "percentile": 30.0}
        row |= {"unknown_p": round(rng.uniform(), 2) if scored else None}
        rows.append(row | dict.fromkeys(LEAKS, False))
    return rows


def manifold(folder: Path) -> tuple[str, str]:
    """Write what the viewer reads of a manifold with one real, and of its attributor."""
    Image.fromarray(draw("blocks", 1)).save(folder / "a-real.png")
    table = pa.table({"id": ["r1", "r7"], "uri": ["", str(folder / "a-real.png")]})
    shard = {"reals": 2, "rows": {"path": "rows.parquet"}}
    body = {"kind": "manifold", "key": "0" * 64, "content_sha256": "c", "shards": [shard]}
    body |= {"inputs": {"given": [f"real={folder}/a-real.png"]}}
    (folder / "manifold").mkdir()
    storage.write_bytes(f"{folder}/manifold/rows.parquet", storage.parquet_bytes(table))
    storage.write_json(f"{folder}/manifold/manifest.json", body)
    branch = {"manifold": f"{folder}/manifold", "manifold_sha256": "c"}
    model = {"kind": "attributor", "key": "0" * 64, "branches": [branch]}
    (folder / "model").mkdir()
    storage.write_json(f"{folder}/model/manifest.json", model)
    return f"{folder}/model", f"{folder}/manifold"


def output(folder: Path, rows: list[dict]) -> str:
    model, reals = manifold(folder)
    table = columns(rows, ATTRIBUTIONS | dict.fromkeys(LEAKS, pa.bool_()))
    copies = [
        {"id": rows[4]["id"], "duplicate_of": rows[1]["id"], "same": "bytes"},
        {"id": rows[9]["id"], "near_duplicate_of": rows[1]["id"], "distance": 1},
        {"id": rows[8]["id"], "duplicate_of": rows[2]["id"], "same": "pixels"},
    ]
    group = {"images": 20, "counted": 20, "prediction": "real", "probability": 0.9}
    group |= {"probability_low": 0.8, "probability_high": 1.0, "agreeing": 0.9, "unknown": 0.1}
    groups = [{"group": f"g{n}", "unknown_p": 0.3, "decision": "real", **group} for n in range(7)]
    broken = [{"id": n, "uri": n, "error": "corrupt", "message": n} for n in HOSTILE]
    files = {f"attributions/{n:06d}-000000.parquet": table.slice(70 * n, 70) for n in range(3)}
    files |= {
        "quarantine/000000-000000.parquet": pa.Table.from_pylist(broken),
        "duplicates/000000.parquet": columns(copies, DUPLICATES),
        "groups/000000.parquet": columns(groups, GROUP_ROWS),
    }
    counts = {name: table["decision"].to_pylist().count(name) for name in DECISIONS}
    summary = {"rows_in": COUNT + len(broken), "ok": COUNT, "quarantined": len(broken)}
    summary |= {"by_error": {"corrupt": len(broken)}, "decisions": counts, **verdicts(table)}
    summary |= {"leaks": dict.fromkeys(LEAKS, 1), "duplicates": {"exact": 2, "near": 1}}
    summary |= {"groups": {"groups": 7, "images": COUNT}, "manifolds": [reals], "model": model}
    summary |= {"group_by": "folder", "inputs": {"given": [f"x={folder}/input"]}}
    summary = json.loads(json.dumps(summary))
    place = str(folder / "verdicts")
    published(place, "attributions", summary, files, {"summary.json": summary})
    return place


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_of(tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def place(rows):
    return output(Path(rows[0]["uri"]).parents[1], rows)


@pytest.fixture(scope="module")
def client(place):
    app = application(CrawlOutput.open(place))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=True)


def links(text: str, path: str) -> list[str]:
    return [unescape(link) for link in re.findall(rf'href="({path}[^"]*)"', text)]


def shown_ids(client, rows, address: str) -> list[str]:
    """The ids on all pages from an address on, in order, by the positions that they link to."""
    found: list[str] = []
    while True:
        text = client.get(address).text
        for link in dict.fromkeys(links(text, "/row\\?at=")):
            file, row = link.partition("=")[2].split(".")
            found.append(rows[70 * int(file) + int(row)]["id"])
        after = [
            link for link in links(text, "/rows\\?") if "after=" in link and "count" not in link
        ]
        if not after:
            return found
        address = after[0]


def near(value, least, most):
    return value is not None and least <= value <= most


CHOICES = {
    "": lambda row: True,
    "decision=real": lambda row: row["decision"] == "real",
    "prediction=%22%3E%3Cb%3Eblocks%3C/b%3E": lambda row: row["prediction"] == CLASSES[2],
    "probability_min=0.25&probability_max=.75": lambda row: near(row["probability"], 0.25, 0.75),
    "p_max=0.2&decision=unknown": lambda row: (
        near(row["unknown_p"], 0, 0.2) and row["decision"] == "unknown"
    ),
    "score_min=0": lambda row: near(row["unknown_score"], 0, 99),
    "text=%3Cscript%3E": lambda row: "<script>" in row["id"],
    "group=g3": lambda row: row["id"].startswith("g3/"),
    "group=g3&text=onerror": lambda row: row["id"].startswith("g3/") and "onerror" in row["id"],
    "decision=none": lambda row: False,
}
ORDERS = {
    "input": lambda row: 0,
    "surest": lambda row: -row["probability"],
    "strangest": lambda row: np.inf if row["unknown_score"] is None else -row["unknown_score"],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("choice", CHOICES)
def test_pages_have_the_rows_of_the_filters_in_their_order(client, rows, choice, order):
    wanted = sorted(filter(CHOICES[choice], rows), key=ORDERS[order])
    assert shown_ids(client, rows, f"/rows?{choice}&order={order}") == [r["id"] for r in wanted]
    counted = client.get(f"/rows?{choice}&order={order}&count=1").text
    assert f"{len(wanted):,} images match" in counted


def test_a_cluster_is_an_image_and_its_copies(client, rows):
    for number, cluster in ((1, {1, 4, 9}), (9, {1, 4, 9}), (8, {2, 8}), (5, {5})):
        found = client.get("/rows", params={"cluster": rows[number]["id"]}).text
        shown = set(links(found, "/row\\?at="))
        assert shown == {f"/row?at=0.{n}" for n in cluster}


def test_copies_are_listed_by_kind_and_lead_to_their_cluster(client, rows):
    for kind, copies in (("", [4, 9, 8]), ("exact", [4, 8]), ("near", [9])):
        found = client.get("/copies", params={"kind": kind}).text
        clusters = [parse_qs(link)["/rows?cluster"][0] for link in links(found, "/rows")[1:]]
        assert clusters == [rows[number]["id"] for number in copies]
    text = client.get("/").text
    assert '<a href="/copies?kind=exact">2</a> images' in text
    assert '<a href="/copies?kind=near">1</a> images' in text
    assert client.get("/copies?kind=x").status_code == 400


def test_a_cluster_with_more_copies_than_are_searched_says_so(client, rows, monkeypatch):
    cluster = {"cluster": rows[1]["id"]}
    assert "are searched" not in client.get("/rows", params=cluster).text
    for module in (crawl_output, pages):
        monkeypatch.setattr(module, "MOST_ALIKE", 1)
    assert "has more copies; 1 are searched" in client.get("/rows", params=cluster).text


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs


PAGES = ("/", "/rows", "/row?at=0.3", "/row?at=0.31", "/groups", "/copies", "/quarantine")


@pytest.mark.parametrize("page", [*PAGES, "/rows?order=<script>", "/rows?group=<b>x"])
def test_ids_and_queries_with_html_are_text(client, page):
    answer = client.get(page)
    found = Parsed(answer.text)
    assert not {"svg", "iframe", "object", "b" if page != "/" else "svg"} & found.tags
    for name, value in found.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href", "action") or re.match(r"/|#main$|data:,$", value)
    assert answer.text.count("<script") == 1
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_policy_names_the_script_and_the_style_of_the_page(client):
    import base64
    import hashlib

    answer = client.get("/")
    for tag in ("script", "style"):
        text = re.search(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "10.0.0.1", "", "[::1]"])
def test_another_host_is_refused(client, host):
    assert client.get("/rows", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1"])
def test_names_of_loopback_are_served(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/image?at=0.0", "/none"])
def test_only_get_is_answered(client, method, path):
    assert client.request(method, path).status_code == 405


def test_an_image_is_a_png_of_bounded_size(client, rows):
    answer = client.get("/image?at=0.3")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).size == (28, 28)
    large = Image.open(io.BytesIO(client.get("/image?at=0.20").content))
    assert large.size == (256, 256)  # the largest of its sizes that 400 x 600 pixels fill
    tar = [client.get(f"/image?at=0.{n}").content for n in range(25, 34)]
    assert len(set(tar)) == 9
    assert all(data.startswith(b"\x89PNG") for data in tar)


def test_the_nearest_real_is_shown_where_the_manifold_is_there(client, place):
    assert client.get("/real?at=0.3").content.startswith(b"\x89PNG")
    assert "its nearest real" in client.get("/row?at=0.3").text
    crawl = CrawlOutput.open(place, manifolds=["/gone"])
    moved = TestClient(application(crawl), base_url="http://127.0.0.1")
    assert moved.get("/real?at=0.3").status_code == 404
    assert "its nearest real" not in moved.get("/row?at=0.3").text


WRONG = {21: "truncated", 22: "unreadable"}
REFUSED = {23: "forbidden_address", 24: "forbidden_address", 34: "not fetched", 35: "no input"}


@pytest.mark.parametrize(("row", "why"), (WRONG | REFUSED).items())
def test_an_image_that_is_broken_or_elsewhere_has_a_message(client, rows, row, why):
    answer = client.get(f"/image?at=0.{row}")
    assert answer.status_code == 404
    assert why in answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    page = client.get(f"/row?at=0.{row}")
    assert page.status_code == 200
    assert why in page.text


def test_places_that_are_allowed_are_read(place):
    folder = str(Path(place).parent)
    app = application(CrawlOutput.open(place), (f"{folder}/secret.png",))
    client = TestClient(app, base_url="http://127.0.0.1")
    assert {client.get(f"/image?at=0.{n}").status_code for n in (23, 24)} == {200}


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("/data/in/x.png", True),
        ("/data/in", True),
        ("/data/inside/x.png", False),
        ("/data/in/../x.png", False),
        ("/data/in/a.tar#../../x", True),
        ("/data/x#/data/in/y.tar", False),
        ("/data/shards/7.tar#x.png", True),
        ("/data/in/\0", False),
        ("s3://bucket/other/x.png", True),
        ("s3://bucket/../other/x.png", False),
        ("s3://buckets/x.png", False),
        ("gs://bucket/x.png", False),
        ("http://127.0.0.1/x.png", False),
        ("HTTPS://bucket/x.png", False),
        ("ftp://bucket/x.png", False),
        ("", False),
    ],
)
def test_images_are_read_from_inputs_alone(uri, inside):
    places = AllowedPlaces(["real=/data/in", "/data/shards/{0..9}.tar", "s3://bucket/folder/*"])
    assert (places.refusal(uri) is None) == inside


def test_a_row_has_its_evidence_group_and_command(client, rows, place):
    text = unescape(client.get("/row?at=0.4").text)
    row = rows[4]
    assert f"--model {Path(place).parent}/model --output why.html" in text
    assert f"manifpt explain {row['uri']}" in text
    for one in row["top_k"]:
        assert f"{one['probability']:.4f}" in text
    assert rows[1]["id"] in text  # which it is a copy of
    assert '<a href="/rows?group=g4">g4</a>' in text
    same = client.get("/row", params={"id": row["id"]})
    assert unescape(same.text) == text
    assert client.get("/row", params={"id": "none"}).status_code == 400


@pytest.mark.parametrize(
    "address",
    ["/rows?p_min=x", "/rows?p_min=nan", "/rows?order=x", "/rows?after=x", "/row?at=9.9", "/row"],
)
def test_an_address_that_names_nothing_is_a_page_of_one_line(client, address):
    answer = client.get(address)
    assert answer.status_code == 400
    assert "This page cannot be shown" in answer.text


def test_counts_of_the_overview_are_those_of_the_rows(client, rows):
    text = client.get("/").text
    for decision in DECISIONS:
        count = sum(r["decision"] == decision and r["prediction"] == "real" for r in rows)
        assert f'/rows?prediction=real&amp;decision={decision}">{count}</a>' in text
    assert f'/quarantine?code=corrupt">{len(HOSTILE)}</a>' in text


def test_another_output_is_refused_in_one_line(tmp_path, capsys):
    assert view.main([str(tmp_path)]) == 2
    assert "run manifpt attribute first" in capsys.readouterr().err


def test_an_output_in_a_bucket_has_the_same_rows(client, place, s3):
    there = f"{s3}/viewer/verdicts"
    for uri, _ in storage.files_under(place):
        storage.copy(uri, there + uri.removeprefix(place))
    remote = TestClient(application(CrawlOutput.open(there)), base_url="http://127.0.0.1")
    for page in ("/rows?order=strangest", "/row?at=1.9", "/groups"):
        assert remote.get(page).text == client.get(page).text.replace(place, there)


def asked(url: str, **headers: str) -> int:
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_command_serves_on_loopback_alone_and_ends_by_a_signal(place, tmp_path):
    command = [sys.executable, "-m", "jobs.view", place, "--json", f"{tmp_path}/where.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT, env=environment) as process:
        try:
            line = process.stderr.readline().decode()
            address = re.match(r"http://127\.0\.0\.1:(\d+)/", line)
            assert storage.read_json(f"{tmp_path}/where.json")["address"] == address[0]
            port = int(address[1])
            assert asked(address[0]) == 200
            assert asked(f"{address[0]}image?at=0.3") == 200
            assert asked(address[0], Host="example.org") == 400
            with pytest.raises(ConnectionRefusedError):  # an address of this machine, too
                socket.create_connection(("127.0.0.2", port), 5).close()
            taken = [*command[:4], "--port", str(port)]
            second = subprocess.run(
                taken, capture_output=True, text=True, cwd=ROOT, env=environment
            )
            assert second.returncode == 2
            assert second.stderr.startswith(f"view: --port {port}: ")
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert b"Traceback" not in process.stderr.read()
