"""Tables of URIs: ranges and rows in each format, and where an entry may lead."""

import csv
import http.server
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png, write_folder

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Reading, plan, read_unit
from manifpt.images.decode import DecodeError
from manifpt.images.tables import ROWS_PER_UNIT, resolved, rows
from manifpt.images.units import units

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
    again = [row for unit in reversed(found) for row in reversed(list(rows(unit)))][::-1]
    assert [row.number for row in again] == list(range(count))
    if ending in {"csv", "tsv"}:  # which know no null
        records = [{name: cell or None for name, cell in row.items()} for row in records]
    assert [row.fields for row in again] == records


@pytest.mark.parametrize("ending", ENDINGS)
def test_local_files_ids_columns_and_declared_sources(tmp_path, ending):
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
        None, None, None, "unreadable", "forbidden_address", "missing_image", "unreadable",
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
        ("s3://other/x", "s3://b/t.csv", "s3://other/x"),
        ("a/x.png", "s3://b/f/t.csv", "s3://b/f/a/x.png"),
        ("../x.png", "s3://b/f/t.csv", "s3://b/x.png"),
        ("../../c/x.png", "s3://b/f/t.csv", None),
        ("/etc/passwd", "s3://b/t.csv", None),
        ("file:///etc/passwd", "s3://b/t.csv", None),
        ("FILE:///etc/passwd", "s3://b/t.csv", None),
        ("ftp://h/x", "/data/t.csv", None),
    ],
)
def test_where_an_entry_leads(entry, table, expected):
    if expected is None:
        with pytest.raises(DecodeError) as error:
            resolved(entry, table)
        assert error.value.code == "forbidden_address"
    else:
        assert resolved(entry, table) == expected


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
