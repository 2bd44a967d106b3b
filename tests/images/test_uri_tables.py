"""Tables of URIs: ranges and rows in each format, and where an entry may lead."""

import csv
import http.server
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import draw, png, write_folder
from PIL import Image

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Reading, plan, read_unit
from manifpt.images.decode import DecodeError
from manifpt.images.read import unit_from_json, unit_to_json
from manifpt.images.sources import content_key
from manifpt.images.units import units
from manifpt.images.uri_tables import ROWS_PER_UNIT, resolved, table_rows

RULE = DecodeRule(16)
ENDINGS = ["csv", "tsv", "jsonl", "parquet"]


def write_table(path, records):
    """Write dictionaries with the same keys in the format that the path's ending names."""
    names = list(records[0])
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=700)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with path.open("w", newline="") as file:
            tabs = path.suffix == ".tsv"
            if tabs:
                lines = [names, *(record.values() for record in records)]
                file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
                return path
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(record.values() for record in records)
    return path


def read(inputs, rule=RULE, **reading):
    found = plan([str(i) for i in inputs], reading=Reading(**reading))
    return [row for unit in found for table in read_unit(unit, rule) for row in table.to_pylist()]


@pytest.mark.parametrize("ending", ENDINGS)
def test_ranges_cover_every_row_once(tmp_path, ending):
    count = 2 * ROWS_PER_UNIT + 100
    texts = ['a "quoted" one', "two, three", "", "line\nbreak", "ü"]
    if ending == "tsv":
        texts = ['a "lonely quote', "two, three", "", '"', "ü"]
    records = [{"n": str(n), "text": texts[n % 5], "url": f"u{n}.png"} for n in range(count)]
    table = write_table(tmp_path / f"t.{ending}", records)
    found = plan([str(table)], reading=Reading(columns=("n", "text")))
    assert [unit.rows for unit in found] == [(0, 1024), (1024, 2048), (2048, count)]
    assert all(unit.kind == "table" for unit in found)
    total = sum(unit.bytes for unit in found)
    assert table.stat().st_size - 20 < total <= table.stat().st_size
    again = [row for unit in reversed(found) for row in reversed(list(table_rows(unit)))][::-1]
    assert [row.number for row in again] == list(range(count))
    if ending in {"csv", "tsv"}:  # which know no null
        records = [{name: cell or None for name, cell in row.items()} for row in records]
    assert [row.fields for row in again] == records


@pytest.mark.parametrize("ending", ENDINGS)
def test_local_files_ids_columns_and_declared_sources(tmp_path, monkeypatch, ending):
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # google-auth would ask the network for credentials
    images = write_folder(tmp_path / "images", "real", range(3))
    records = [
        {"path": path, "sku": sku, "site": site, "source": "gan", "split": "test"}
        for path, sku, site in [
            ("images/0000.png", "A", "s1"),
            (str(images / "0001.png"), "A", "s2"),
            (f"file://{images}/0002.png", "B", "s1"),
            ("images/gone.png", "C", "s1"),
            ("gs://bucket/x.png", "D", "s1"),
            ("", "E", "s1"),
            ("/dev/zero", "F", "s1"),
        ]
    ]
    table = write_table(tmp_path / f"urls.{ending}", records)
    found = read([table], columns=("site",), id_column="sku")
    assert [row["id"] for row in found] == [f"urls/{sku}~{n}" for n, sku in enumerate("AABCDEF")]
    assert [row["error"] for row in found] == [
        None, None, None, "unreadable", "unreadable", "missing_image", "unreadable",
    ]  # fmt: skip
    assert [row["site"] for row in found][:3] == ["s1", "s2", "s1"]
    assert {(row["source"], row["split"]) for row in found} == {("gan", "test")}
    assert found[1]["uri"] == str(images / "0001.png")
    assert read([table])[0]["id"] == "urls/00000000"
    assert read([table], RULE.__class__(16, max_bytes=10))[0]["error"] == "too_many_bytes"


def test_the_column_of_uris(tmp_path):
    write_folder(tmp_path, "real", range(1))
    names = {"URL": "0000.png", "where": "0000.png", "n": 1}
    for ending in ENDINGS:
        table = write_table(tmp_path / f"t.{ending}", [names])
        assert read([table])[0]["error"] is None
        assert read([table], uri_column="where")[0]["error"] is None
        with pytest.raises(ManifptError, match="--uri-column"):
            read([table], uri_column="gone")
        with pytest.raises(ManifptError, match="--id-column"):
            read([table], id_column="gone")
        other = write_table(tmp_path / f"other.{ending}", [{"n": "1"}])
        with pytest.raises(ManifptError, match="--uri-column"):
            read([other])


@pytest.mark.parametrize(
    ("ending", "text", "errors"),
    [
        ("jsonl", '{"url": "0000.png"}\nno json\n[1]\n\n{"url": "0000.png"}\n',
         [None, "missing_image", "missing_image", None]),
        ("csv", 'url,n\n0000.png,1\n"never closed,2\n' + "x" * 200_000,
         [None, "missing_image", "missing_image"]),
        ("csv", "url,n\n0000.png\n0000.png,1,2,3\n", [None, None]),
        ("csv", "\ufeffurl\r\n0000.png\r\n\r\n0000.png", [None, None]),
        ("jsonl", '{"url": "0000.png"}\n' + "x" * 2**21 + '\n{"url": "0000.png"}',
         [None, "missing_image", None]),
    ],
)  # fmt: skip
def test_broken_tables_keep_what_can_be_read(tmp_path, ending, text, errors):
    write_folder(tmp_path, "real", range(1))
    (tmp_path / f"t.{ending}").write_text(text)
    found = read([tmp_path / f"t.{ending}"])
    assert [row["error"] for row in found] == errors
    assert len({row["id"] for row in found}) == len(errors)


def test_a_table_that_was_changed_is_not_read_as_if_nothing_was(tmp_path):
    write_folder(tmp_path, "real", range(1))
    table = write_table(tmp_path / "t.csv", [{"url": "0000.png"}] * 5)
    (unit,) = plan([str(table)])
    table.write_text("url\n0000.png\n")
    errors = [row["error"] for t in read_unit(unit, RULE) for row in t.to_pylist()]
    assert errors == [None, "broken_archive"]


@pytest.mark.parametrize(
    ("entry", "table", "expected"),
    [
        ("x.png", "/data/t.csv", "/data/x.png"),
        ("../x.png", "/data/t.csv", "/x.png"),
        ("/abs/x.png", "/data/t.csv", "/abs/x.png"),
        ("https://h/x?y=1", "s3://b/t.csv", "https://h/x?y=1"),
        ("s3://other/x", "s3://b/t.csv", None),
        ("gs://b/x", "s3://b/t.csv", None),
        ("s3://b/x", "gs://b/t.csv", None),
        ("GS://b/f/x", "gs://b/t.csv", "gs://b/f/x"),
        ("gs://other/x", "gs://b/t.csv", None),
        ("a/x.png", "gs://b/f/t.csv", "gs://b/f/a/x.png"),
        ("a/x.png", "az://b/f/t.csv", "az://b/f/a/x.png"),
        ("az://b/x", "gs://b/t.csv", None),
        ("../../c/x.png", "gs://b/f/t.csv", None),
        ("/etc/passwd", "gs://b/t.csv", None),
        ("gs://other/x", "/data/t.csv", "gs://other/x"),
        ("S3://b/f/x", "s3://b/t.csv", "s3://b/f/x"),
        ("s3://b/../other/x", "s3://b/t.csv", None),
        ("s3://b", "s3://b2/t.csv", None),
        ("s3:///other/x", "s3://b/t.csv", None),
        ("s3://me:canary@b/x", "s3://b/t.csv", None),
        ("s3://arn:aws:s3:eu:1:accesspoint/other/x", "s3://b/t.csv", None),
        ("s3://other/x", "/data/t.csv", "s3://other/x"),
        ("s3://named/x", "s3://b/t.csv", "s3://named/x"),
        ("HTTPS://h/x", "s3://b/t.csv", "https://h/x"),
        ("//etc/passwd", "s3://b/t.csv", None),
        ("a/x.png", "s3://b/f/t.csv", "s3://b/f/a/x.png"),
        ("../x.png", "s3://b/f/t.csv", "s3://b/x.png"),
        ("../../c/x.png", "s3://b/f/t.csv", None),
        ("/etc/passwd", "s3://b/t.csv", None),
        ("file:///etc/passwd", "s3://b/t.csv", None),
        ("FILE:///etc/passwd", "s3://b/t.csv", None),
        ("ftp://h/x", "/data/t.csv", None),
        ("s3://me:canary@b/x", "/data/t.csv", None),
        ("s3://b", "/data/t.csv", None),
    ],
)
def test_where_an_entry_leads(entry, table, expected):
    if expected is None:
        with pytest.raises(DecodeError) as error:
            resolved(entry, table, Reading(allow_buckets=("named", "d")))
        assert error.value.code in {"forbidden_address", "missing_image"}
        assert "canary" not in str(error.value)
    else:
        assert resolved(entry, table, Reading(allow_buckets=("named", "d"))) == expected


@pytest.mark.parametrize("entry", ["/etc/x.png", "file:///etc/x.png", "FILE:///etc/../etc/x.png"])
def test_a_table_on_s3_names_local_files_only_if_that_is_allowed(entry):
    assert resolved(entry, "s3://b/t.csv", Reading(allow_local=True)) == "/etc/x.png"
    with pytest.raises(DecodeError):
        resolved(entry, "s3://b/t.csv", Reading(allow_buckets=("etc",)))


def test_what_a_table_may_name_travels_and_decides_keys_only_where_it_is_given(tmp_path):
    write_folder(tmp_path, "real", range(1))
    table = str(write_table(tmp_path / "t.csv", [{"url": "0000.png", "n": "1"}]))
    given = {"allow_buckets": ("a",), "allow_local": True, "columns": ("n",)}
    (unit,) = plan([table], reading=Reading(**given))
    assert unit_from_json(unit_to_json(unit)) == unit
    every = [{}, {"columns": ("n",)}, {"allow_local": True}, {"allow_buckets": ("a",)}, given]
    keys = {content_key(plan([table], reading=Reading(**some))) for some in every}
    assert len(keys) == len(every)
    # As before there was any such setting: outputs of then are known again.
    assert Reading(columns=("n",)).facts() == {
        "image_column": None, "id_column": None, "uri_column": None, "columns": ("n",),
        "allow_private": False,
    }  # fmt: skip


def test_a_table_on_s3_leads_to_its_bucket_and_those_that_are_named(s3, tmp_path):
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir("elsewhere")
    for bucket in ("manifpt/named", "elsewhere"):
        fs.pipe_file(f"{bucket}/0.png", png("real", 0))
    Image.fromarray(draw("real", 0)).save(tmp_path / "0.png")
    entries = ["0.png", "s3://elsewhere/0.png", f"{tmp_path}/0.png"]
    local = write_table(tmp_path / "t.csv", [{"url": entry} for entry in entries])
    fs.put(str(local), "manifpt/named/t.csv")

    def errors(table, **allowed):
        return [row["error"] for row in read([table], **allowed)]

    no = "forbidden_address"
    table = f"{s3}/named/t.csv"
    assert errors(local) == [None, None, None]
    assert errors(table) == [None, no, no]
    assert errors(table, allow_buckets=("elsewhere",)) == [None, None, no]
    assert errors(table, allow_local=True) == [None, no, None]


def test_no_row_of_a_table_holds_what_its_uris_hide(s3, tmp_path):
    """Whether an entry can be read or not, and whatever it is."""
    write_folder(tmp_path, "real", range(1))
    (tmp_path / "a?b=c.png").write_bytes(png("real", 0))
    entries = [
        "0000.png",
        "http://me:canary@127.0.0.1:9/a.png?sig=canary",
        "http://127.0.0.1:9/a b.png?sig=canary",
        "http:/127.0.0.1:9/a.png?sig=canary",
        "host.invalid/a.png?sig=canary",
        "//me:canary@host.invalid/a.png",
        "s3://key:canary@manifpt/a.png",
        "s3://manifpt/none.png?X-Amz-Signature=canary",
        "ftp://me:canary@host/a.png",
        "http://no-such-host.invalid/1?sig=canary",
        "http://no-such-host.invalid/1?sig=another-canary",
    ]
    table = write_table(tmp_path / "t.csv", [{"url": entry} for entry in entries])
    found = read([table], allow_private=True)
    assert len({row["id"] for row in found}) == len(entries)
    for row in found:
        assert "canary" not in f"{row['uri']} {row['message']} {row['id']}"
        assert (row["error"] is None) == (row["uri"] == f"{tmp_path}/0000.png")
    assert found[1]["uri"] == "http://127.0.0.1:9/a.png"
    # Names in a listing are no secrets: they lead to the file.
    (listed,) = read([tmp_path / "a?b=c.png"])
    assert listed["uri"] == f"{tmp_path}/a?b=c.png"


def test_a_table_in_the_web_keeps_its_order_while_downloads_overlap(tmp_path):
    busy, most, lock = [0], [0], threading.Lock()

    class Slow(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            with lock:
                busy[0] += 1
                most[0] = max(most[0], busy[0])
            number = int(self.path.strip("/"))
            threading.Event().wait(0.02 * (number % 3))
            with lock:
                busy[0] -= 1
            body = png("real", number)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    table = write_table(tmp_path / "t.csv", [{"url": f"{url}/{n}"} for n in range(60)])
    refused = read([table])
    assert {row["error"] for row in refused} == {"forbidden_address"}
    assert most[0] == 0
    found = read([table], allow_private=True)
    server.shutdown()
    assert most[0] > 4
    assert [row["uri"] for row in found] == [f"{url}/{n}" for n in range(60)]
    folder = write_folder(tmp_path / "same", "real", range(60))
    same = [row["pixel_sha256"] for row in read([folder])]
    assert [row["pixel_sha256"] for row in found] == same


def test_a_text_in_a_folder_is_a_file_unless_it_is_named(tmp_path):
    write_folder(tmp_path, "real", range(2))
    write_table(tmp_path / "labels.csv", [{"path": "0000.png"}])
    assert [unit.kind for unit in units([str(tmp_path)])] == ["files"]
    assert [unit.kind for unit in units([f"{tmp_path}/*.csv"])] == ["table"]
