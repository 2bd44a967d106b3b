"""Hostile tars: each attack costs at most its own row, and what is beside it is read."""

import gzip
import io
import tarfile
import time

import pytest
from conftest import png, write_tar
from hypothesis import given
from hypothesis import strategies as st

from manifpt.images import DecodeRule, Reading, plan, read_unit
from manifpt.images.raw import raw_images
from manifpt.images.sources import Unit
from manifpt.images.tars import members

RULE = DecodeRule(16, max_bytes=2**20)
BEFORE, AFTER = ("a.png", png("real", 1)), ("z.png", png("real", 2))


def header(name, size=0, kind=tarfile.REGTYPE, **facts):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in facts.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def block(data):
    return data + bytes(-len(data) % 512)


def file(name, data):
    return header(name, len(data)) + block(data)


def pax(records, kind=tarfile.XHDTYPE):
    return header("pax", len(records), kind) + block(records)


def table(path):
    units = plan([str(path)])
    return [row for unit in units for t in read_unit(unit, RULE) for row in t.to_pylist()]


def around(tmp_path, attack, *, packed=False):
    """The rows of a tar with an attack between two good images."""
    data = file(*BEFORE) + attack + file(*AFTER) + bytes(1024)
    path = tmp_path / "t.tar"
    path.write_bytes(gzip.compress(data) if packed else data)
    return table(path)


IMAGE = png("real", 3)
ATTACKS = {
    "absolute path": (file("/etc/passwd", IMAGE), "unsafe_path"),
    "parent path": (file("x/../../y.png", IMAGE), "unsafe_path"),
    "parent path in a pax header": (
        pax(b"20 path=../../y.png\n") + file("good.png", IMAGE),
        "unsafe_path",
    ),
    "symbolic link": (header("l.png", 0, tarfile.SYMTYPE, linkname="/etc/passwd"), "unsafe_member"),
    "hard link": (header("l.png", 0, tarfile.LNKTYPE, linkname="a.png"), "unsafe_member"),
    "device": (header("d.png", 0, tarfile.CHRTYPE, devmajor=1, devminor=5), "unsafe_member"),
    "pipe": (header("p.png", 0, tarfile.FIFOTYPE), "unsafe_member"),
    "holes": (header("s.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(512), "unsafe_member"),
    "large": (file("big.png", bytes(2**20 + 1)), "too_many_bytes"),
    "not UTF-8": (file("\udcff\udcfe.png", IMAGE), None),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_one_row(tmp_path, name, packed):
    attack, code = ATTACKS[name]
    rows = around(tmp_path, attack, packed=packed)
    assert len({row["id"] for row in rows}) == len(rows) == 3
    by_id = {row["id"]: row["error"] for row in rows}
    assert by_id.pop("t/a") is None
    assert by_id.pop("t/z") is None
    assert list(by_id.values()) == [code]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.tar"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [2**40, 2**62, 2**80])
def test_a_size_beyond_the_archive_is_one_row_and_ends_it(tmp_path, size, packed):
    huge = tarfile.TarInfo("huge.png")
    huge.size = size
    data = file(*BEFORE) + huge.tobuf(tarfile.GNU_FORMAT) + IMAGE
    (tmp_path / "t.tar").write_bytes(gzip.compress(data) if packed else data)
    started = time.monotonic()
    rows = table(tmp_path / "t.tar")
    assert time.monotonic() - started < 2
    assert [(row["id"], row["error"]) for row in rows] == [
        ("t/a", None),
        ("t/huge", "too_many_bytes"),
    ]
    assert "ends before" in rows[1]["message"]


GOOD = b"".join(
    [file(*BEFORE), pax(b"15 path=p.png\n "[:15]), file("x", IMAGE), file(*AFTER), bytes(1024)]
)

ENDLESS = {
    "pax header that announces much": header("pax", 2**50, tarfile.XHDTYPE) + bytes(4096),
    "name that announces much": header("@", 2**50, tarfile.GNUTYPE_LONGNAME) + bytes(4096),
    "chain of pax headers": pax(b"9 a=1234\n") * 3000,
    "chain of global headers": pax(b"9 a=1234\n", tarfile.XGLTYPE) * 3000,
    "digits": pax(b"1" * 2**19) + pax(b"1" * 2**19),
    "negative size": header("n.png", -1024),
    "broken header": b"x" * 512,
    "half a header": b"x" * 100,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_headers_without_end_are_one_row(tmp_path, name):
    (tmp_path / "t.tar").write_bytes(file(*BEFORE) + ENDLESS[name] + file(*AFTER)[:100])
    started = time.monotonic()
    rows = table(tmp_path / "t.tar")
    assert time.monotonic() - started < 2
    assert [row["error"] for row in rows] == [None, "broken_archive"]


def test_a_compressed_bomb_stops_soon(tmp_path):
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="wb") as out:
        out.write(file(*BEFORE) + header("bomb.png", 2**32))
        for _ in range(96):
            out.write(bytes(2**20))
    (tmp_path / "t.tar.gz").write_bytes(sink.getvalue())
    rows = table(tmp_path / "t.tar.gz")
    assert [row["error"] for row in rows] == [None, "broken_archive"]
    assert "compressed size" in rows[1]["message"]


def test_a_sample_without_end_is_cut(tmp_path):
    many = [(f"x.{n}", bytes(2**20)) for n in range(12)]
    rows = table(write_tar(tmp_path / "t.tar", many))
    assert len({row["id"] for row in rows}) == len(rows) == 12


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_are_those_that_tarfile_finds(tmp_path, form, mode):
    path = tmp_path / "t.tar"
    names = ["a.png", "./b.png", "folder/" + "n" * 90 + ".png", "é/ü.png", "empty.png", "dir/"]
    names += [] if form == tarfile.USTAR_FORMAT else ["deep/" * 40 + "x.png"]
    with tarfile.open(path, mode, format=form) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            data = b"" if name in {"empty.png", "dir/"} else bytes([number]) * (number * 700 + 1)
            info.size = len(data)
            info.type = tarfile.DIRTYPE if name == "dir/" else tarfile.REGTYPE
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        expected = [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]
    with path.open("rb") as opened:
        assert [(m.name, m.data) for m in members(opened, 2**20)] == expected


@given(
    st.lists(st.tuples(st.integers(0, 5999), st.binary(min_size=1, max_size=20)), max_size=6),
    st.integers(0, 6000),
    st.booleans(),
)
def test_any_bytes_make_rows(tmp_path_factory, changes, length, packed):
    data = bytearray(gzip.compress(GOOD) if packed else GOOD)
    for place, new in changes:
        data[place % len(data) : place % len(data) + len(new)] = new
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(data[:length])
    unit = Unit("tar", (str(path),), ("any",), None, None)
    found = list(raw_images(unit, RULE))
    assert len({raw.id for raw in found}) == len(found)


def test_metadata_come_from_the_json_else_from_the_parquet_beside(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = b'{"caption": "from json", "tags": ["x", 1], "seed": 7}'
    image = png("real", 0)
    write_tar(
        tmp_path / "00000.tar",
        [("000000000.jpg", image), ("000000000.json", facts), ("000000001.jpg", image)],
    )
    beside = {"key": ["000000000", "000000001"], "caption": ["no", "from parquet"]}
    pq.write_table(
        pa.table({**beside, "url": ["http://x", "http://y"]}), tmp_path / "00000.parquet"
    )
    (tmp_path / "00000_stats.json").write_text("{}")
    units = plan([str(tmp_path)], reading=Reading(columns=("caption", "tags", "seed")))
    assert [unit.kind for unit in units] == ["tar"]
    found = [row for t in read_unit(units[0], RULE) for row in t.to_pylist()]
    assert [(r["caption"], r["tags"], r["seed"]) for r in found] == [
        ("from json", '["x", 1]', "7"),
        ("from parquet", None, None),
    ]
