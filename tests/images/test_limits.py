"""Crafted inputs that would take a reader's memory or time: each ends in rows, within bounds."""

import contextlib
import http.server
import io
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import png, write_tar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Reading, plan, read_unit
from manifpt.images.contents import map_in_order
from manifpt.images.decode import decode
from manifpt.images.ids import Keys

MIB = 2**20
# Prints the rows of each input, and the peak of memory of this process and of any child of it.
READ = """
import json, resource, sys
from manifpt.images import DecodeRule, Reading, plan, read_unit, reader, sandbox
rule, reading = DecodeRule(16, max_bytes=2**20), Reading(**json.loads(sys.argv[1]))
found = []
for path in sys.argv[2:]:
    tables = [t for u in plan([path], reading=reading) for t in read_unit(u, rule)]
    found.append([row for t in tables for row in t.drop_columns(["image"]).to_pylist()])
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
reader.close_idle(), sandbox._close_idle()
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([found, int(peak) // 1024, children // 1024]))
"""


def measured(*paths, program=READ, **reading):
    """Read in a process of its own; return the rows of each, and MiB of it and of its children."""
    command = [sys.executable, "-c", program, json.dumps(reading), *map(str, paths)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def read(path, **reading):
    units = plan([str(path)], reading=Reading(**reading))
    return [row for u in units for t in read_unit(u, DecodeRule(16)) for row in t.to_pylist()]


def images(count):
    return [png("real", number) for number in range(count)]


def ends(rows):
    return [row["error"] for row in rows]


def table_of(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def zigzag(value):
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def test_a_value_that_is_repeated_is_not_expanded(tmp_path):
    """64 x 20 MiB of zeros, once in the dictionary, would be 1.3 GB."""
    values = pa.DictionaryArray.from_arrays(
        pa.array([0] * 64 + [1], pa.int32()), pa.array([bytes(20 * MIB), png("real", 1)])
    )
    paths = [
        table_of(tmp_path / f"{kind}.pq", {"image": values}, compression=kind, store_schema=False)
        for kind in ("zstd", "snappy")
    ]
    found, own, child = measured(*paths)
    for rows in found:
        assert ends(rows) == ["too_many_bytes"] * 64 + [None]
        assert rows[0]["message"] == f"{20 * MIB} bytes, limit {MIB}"
    assert own < 200
    assert child < 500


@pytest.mark.slow
def test_a_cell_of_nearly_2_gib_is_one_row(tmp_path):
    """Its page needs three times as much, at least: more than the reader may have."""
    values = pa.array([bytes(2**31 - 2**20)], pa.large_binary())
    path = table_of(tmp_path / "p.parquet", {"image": values}, compression="zstd")
    assert path.stat().st_size < MIB
    (rows,), own, child = measured(path)
    assert ends(rows) in (["too_many_bytes"], ["broken_archive"])
    assert own < 200
    assert child < 4500


def test_a_page_that_lies_costs_the_rest(tmp_path):
    """The header of a page of some bytes announces nearly 2 GiB, and then other sizes."""
    whole = table_of(tmp_path / "p.parquet", {"image": images(3)}, use_dictionary=False)
    data = whole.read_bytes()
    start = pq.ParquetFile(whole).metadata.row_group(0).column(0).data_page_offset
    size = data.index(0x15, start + 2) + 1  # after the type of the field, which follows another
    end = next(at for at in range(size, len(data)) if data[at] < 0x80) + 1
    paths = []
    for number, lie in enumerate((2**31 - 2**16, 2**26, 1, -5)):
        paths.append(tmp_path / f"{number}.parquet")
        paths[-1].write_bytes(data[:size] + zigzag(lie) + data[end:])
    found, own, child = measured(*paths)
    assert [ends(rows) for rows in found] == [["broken_archive"]] * 4
    assert own < 200
    assert child < 400


def test_a_damaged_page_costs_the_rest_on_s3_too(s3, tmp_path):
    path = table_of(tmp_path / "p.parquet", {"image": images(300)}, row_group_size=100)
    data = bytearray(path.read_bytes())
    second = pq.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    data[second : second + 8] = b"\xff" * 8
    path.write_bytes(data)
    s3fs.S3FileSystem(use_listings_cache=False).put(str(path), "manifpt/limits/p.parquet")
    for place in (path, f"{s3}/limits/p.parquet"):
        assert ends(read(place)) == [None] * 100 + ["broken_archive"]


def test_an_outage_of_the_storage_is_no_fault_of_the_file(s3, tmp_path, monkeypatch):
    path = table_of(tmp_path / "p.parquet", {"image": images(3)})
    s3fs.S3FileSystem(use_listings_cache=False).put(str(path), "manifpt/limits/o.parquet")
    (unit,) = plan([f"{s3}/limits/o.parquet"])
    monkeypatch.setattr(s3fs.S3File, "_fetch_range", fails)
    with pytest.raises(ManifptError, match=r"the server .* fails"):
        list(read_unit(unit, DecodeRule(16)))


def fails(*_):
    raise OSError(16, "Please reduce your request rate.")


def test_a_footer_that_announces_too_much_is_one_row(tmp_path):
    wide = {f"c{n}": pa.array([1], pa.int8()) for n in range(2**14)}
    nothing = pa.nulls(3_000_000, pa.binary())  # each would be a row of the quarantine
    paths = [
        table_of(tmp_path / "wide.parquet", wide | {"image": images(1)}),
        table_of(tmp_path / "rows.parquet", {"image": nothing}),
    ]
    found, own, child = measured(*paths)
    assert [ends(rows) for rows in found] == [["broken_archive"]] * 2
    assert "more than 16384 columns" in found[0][0]["message"]
    assert "announces 3000000 rows" in found[1][0]["message"]
    assert own < 200
    assert child < 500


@pytest.mark.parametrize(
    ("depth", "errors"), [(2, [None, "missing_image"]), (200, ["broken_archive"])]
)
def test_structs_in_structs_are_read(tmp_path, depth, errors):
    kind, value = pa.binary(), png("real", 0)
    for _ in range(depth):
        kind, value = pa.struct([("bytes", kind)]), {"bytes": value}
    pq.write_table(pa.table({"image": pa.array([value, None], kind)}), tmp_path / "p.parquet")
    assert ends(read(tmp_path / "p.parquet")) == errors


def test_values_that_python_or_json_can_not_say_cost_their_cell(tmp_path):
    times = pa.array([0, 2**60, None], pa.timestamp("us"))
    deep, kind = 1, pa.int8()
    for _ in range(50):
        deep, kind = {"a": deep}, pa.struct([("a", kind)])
    nested = pa.array([deep, None, deep], kind)
    numbers = pa.array([1, None, 3], pa.decimal128(20, 2))
    columns = {"image": images(3), "when": times, "deep": nested, "n": numbers}
    table_of(tmp_path / "p.parquet", columns)
    rows = read(tmp_path / "p.parquet", columns=("when", "deep", "n"))
    assert ends(rows) == [None] * 3
    assert rows[0]["when"] == '"1970-01-01 00:00:00"'
    assert str(2**60) in rows[1]["when"]
    assert rows[2]["when"] is None
    assert [row["n"] for row in rows] == ['"1.00"', None, '"3.00"']


def test_text_that_is_no_utf_8_costs_no_other_row(tmp_path):
    names = pa.array([b"a", b"\xff", b"a", b"a~2"], pa.binary()).view(pa.string())
    table_of(tmp_path / "p.parquet", {"image": images(4), "key": names})
    rows = read(tmp_path / "p.parquet", columns=("key",))
    assert [row["id"] for row in rows] == ["p/a", "p/\\xff", "p/a~2", "p/a%7E2"]


def test_a_cell_of_text_that_is_too_long_is_none(tmp_path):
    texts = pa.array(["x" * (MIB + 1), "x" * MIB, "y"])
    columns = {"image": images(3), "caption": texts}
    rows = read(table_of(tmp_path / "p.parquet", columns), columns=("caption",))
    assert [len(row["caption"] or "") for row in rows] == [0, MIB, 1]


def test_a_large_or_deep_json_beside_an_image_costs_its_columns(tmp_path):
    texts = [b"[" * depth + b"]" * depth for depth in (980, 100_000)]
    texts += [b"[" + b"[]," * (size // 3) + b"0]" for size in (2 * MIB, 40 * MIB)]
    members = [("z.png", png("real", 0)), ("z.json", b'{"caption": "z"}')]
    for number, text in enumerate(texts):
        members.append((f"{number}.png", png("real", number)))
        members.append((f"{number}.json", b'{"caption": ' + text + b"}"))
    write_tar(tmp_path / "t.tar", members)
    program = READ.replace("max_bytes=2**20", "max_bytes=2**26")
    (rows,), own, _ = measured(tmp_path / "t.tar", program=program, columns=["caption"])
    assert ends(rows) == [None] * 5
    assert [row["caption"] for row in rows] in (
        ["z", None, None, None, None],
        ["z", texts[0].decode(), None, None, None],  # as deep as Python's stack has room
    )
    assert own < 300


def test_a_broken_or_huge_parquet_beside_a_tar_costs_its_columns(tmp_path):
    write_tar(tmp_path / "t.tar", [("a.png", png("real", 0))])
    table_of(tmp_path / "t.parquet", {"key": ["a"], "caption": ["c"]})
    damaged = bytearray((tmp_path / "t.parquet").read_bytes())
    damaged[4:20] = b"\xff" * 16
    for data in (damaged, b"PAR1 no more", b""):
        (tmp_path / "t.parquet").write_bytes(data)
        (row,) = read(tmp_path / "t.tar", columns=("caption",))
        assert (row["error"], row["caption"]) == (None, None)


def test_repeated_ids_take_linear_time():
    keys = Keys("p")
    start = time.process_time()
    found = [keys.id("same") for _ in range(100_000)]
    assert time.process_time() - start < 2
    assert found[:3] == ["p/same", "p/same~2", "p/same~3"]


@contextlib.contextmanager
def server(sizes):
    """Serve as many zeros as ``sizes`` says for each number, at once."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            left = sizes[int(self.path[1:])]
            self.send_response(200)
            self.send_header("Content-Length", str(left))
            self.end_headers()
            with contextlib.suppress(OSError):  # who asked has seen the length
                while left:
                    left -= self.wfile.write(bytes(min(left, MIB)))

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.request_queue_size = 128
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_address[1]}"
    found.shutdown()
    found.server_close()


def test_large_files_under_way_have_a_budget(tmp_path):
    with server([12 * MIB] * 48) as url:
        lines = [f"{url}/{number}" for number in range(48)]
        (tmp_path / "t.csv").write_text("\n".join(["url", *lines]))
        program = READ.replace("max_bytes=2**20", "max_bytes=2**25")
        (rows,), own, _ = measured(tmp_path / "t.csv", program=program, allow_private=True)
    assert ends(rows) == ["unknown_format"] * 48
    assert own < 400  # 32 threads could hold as much, beside 140


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 8), st.integers(0, 200))
def test_work_in_order_comes_to_an_end_whatever_the_budget(sizes, threads, room):
    def work(size, reserve):
        reserve(size)
        reserve(size // 2)
        return size

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manifpt.images.contents.ROOM", room)
        assert list(map_in_order(work, sizes, threads)) == sizes


def test_no_thread_waits_after_the_end(tmp_path):
    def work(item, reserve):
        reserve(2**40)
        return item

    found = map_in_order(work, range(40), 8)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    found.close()
    for _ in range(200):
        if not any("ThreadPoolExecutor" in thread.name for thread in threading.enumerate()):
            break
        time.sleep(0.05)
    else:
        pytest.fail("threads wait for room")


def test_a_long_image_is_not_enlarged_whole(tmp_path):
    line = np.tile(np.arange(0, 250, dtype=np.uint8), 6000)
    paths = [tmp_path / "wide.png", tmp_path / "high.png"]
    for path, shape in zip(paths, ((1, -1), (-1, 1)), strict=True):
        Image.fromarray(line.reshape(shape)).save(path)
    found, _, child = measured(*paths)
    assert [ends(rows) for rows in found] == [[None]] * 2
    assert child < 250


def test_the_centre_alone_is_as_of_the_whole(monkeypatch):
    y, x = np.mgrid[:300, :40] / 40
    smooth = (120 + 100 * np.sin(3 * x) * np.cos(2 * y)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(smooth).save(sink, "PNG")
    for rule in (DecodeRule(16), DecodeRule(64, "lanczos"), DecodeRule(50, "bilinear")):
        whole = decode(sink.getvalue(), rule).pixels.astype(int)
        with monkeypatch.context() as patch:
            patch.setattr("manifpt.images.decode.MOST_RESIZED", 0)
            assert np.abs(decode(sink.getvalue(), rule).pixels - whole).max() <= 3
