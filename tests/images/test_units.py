"""Recognition of inputs: kinds, ids and order, from local folders and S3."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import png, write_folder, write_tar

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Reading, Unit, listing, plan, read_unit
from manifpt.images.read import IMAGES, unit_from_json, unit_to_json
from manifpt.images.sources import content_key
from manifpt.images.units import units

RULE = DecodeRule(16)


def read(inputs, **reading):
    found = plan([str(i) for i in inputs], reading=Reading(**reading))
    return [row for unit in found for table in read_unit(unit, RULE) for row in table.to_pylist()]


def images(count):
    return [png("real", number) for number in range(count)]


@pytest.mark.parametrize(
    ("columns", "reading", "ids"),
    [
        ({"image": [{"bytes": d, "path": "x"} for d in images(2)]}, {}, ["00000000", "00000001"]),
        ({"image": images(2), "key": ["k", "l"]}, {}, ["k", "l"]),
        ({"image_data": images(2), "image_name": ["1.png", "1.png"]},
         {"id_column": "image_name"}, ["1.png", "1.png~2"]),
        ({"thumb": [b"", b""], "picture": images(2)}, {"image_column": "picture"},
         ["00000000", "00000001"]),
        ({"only": images(2), "n": [7, 8]}, {"id_column": "n"}, ["7", "8"]),
        ({"image": images(2), "url": ["http://x", None]}, {}, ["00000000", "00000001"]),
        ({"image": pa.array(images(2), pa.large_binary())}, {}, ["00000000", "00000001"]),
    ],
)  # fmt: skip
def test_parquet_of_images(tmp_path, columns, reading, ids):
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    found = read([tmp_path / "p.parquet"], **reading)
    assert [row["error"] for row in found] == [None, None]
    assert [row["id"] for row in found] == [f"p/{name}" for name in ids]


def test_metadata_of_parquet_travel_as_text(tmp_path):
    facts = {"site": ["a", None], "seed": [7, 8], "size": [[1, 2], None], "split": ["Manual"] * 2}
    pq.write_table(pa.table({"image_data": images(2), **facts}), tmp_path / "p.parquet")
    names = ("site", "seed", "size", "gone")
    (unit,) = plan([str(tmp_path)], reading=Reading(columns=names))
    (table,) = read_unit(unit, RULE)
    assert table.column_names[: len(IMAGES) + 4] == [*IMAGES, *names]
    assert all(table.schema.field(name).type == pa.string() for name in names)
    found = [[row[name] for name in names] for row in table.to_pylist()]
    assert found == [["a", "7", "[1, 2]", None], [None, "8", None, None]]


def test_parquet_without_images_or_uris_names_the_options(tmp_path):
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(ManifptError, match=r"x, y.*--image-column.*--uri-column"):
        plan([str(tmp_path)])
    pq.write_table(pa.table({"image": images(1)}), tmp_path / "p.parquet")
    with pytest.raises(ManifptError, match="--image-column"):
        plan([str(tmp_path)], reading=Reading(image_column="gone"))
    (tmp_path / "p.parquet").write_bytes(b"PAR1 broken")
    assert [row["error"] for row in read([tmp_path])] == ["broken_archive"]


def shards(folder, numbers):
    """Write the files of img2dataset."""
    folder.mkdir()
    for number in numbers:
        keys = [f"{number:05d}{n:04d}" for n in range(2)]
        members = [(f"{key}.jpg", png("real", n)) for n, key in enumerate(keys)]
        write_tar(folder / f"{number:05d}.tar", members)
        facts = {"key": keys, "url": ["http://x/1", "http://x/2"], "status": ["success"] * 2}
        pq.write_table(pa.table(facts), folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text("{}")


def test_the_output_of_img2dataset(tmp_path, capsys):
    shards(tmp_path / "crawl", [0, 1, 10000, 100000, 100001])
    found = plan([str(tmp_path / "crawl")])
    assert [(u.kind, u.ids) for u in found] == [
        ("tar", (name,)) for name in ("00000", "00001", "10000", "100000", "100001")
    ]
    said = capsys.readouterr().err
    assert "5 x tar" in said
    assert "10 x metadata file" in said
    assert f"{sum(u.bytes for u in found):,} bytes" in said
    pattern = plan([f"{tmp_path}/crawl/{{00000..00001}}.tar"])
    assert [u.ids for u in pattern] == [("00000",), ("00001",)]


def test_the_order_is_that_of_sorted_paths(tmp_path):
    names = ["a/x.png", "a.png", "a-b/x.png", "a0.png", "Z.png", "é.png", "a/b/c.png", "a/.h/x.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (unit,) = plan([str(tmp_path)])
    expected = [uri for uri, _ in storage.files_under(str(tmp_path)) if not uri.endswith("/loop")]
    assert list(unit.uris) == expected
    assert len(unit.uris) == 7


def test_units_are_listed_as_they_are_asked_for(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for number in range(1030):
        (tmp_path / "a" / f"{number:04d}.png").write_bytes(b"1")
    found = units([str(tmp_path)])
    assert len(next(found).uris) == 1024
    (tmp_path / "b" / "late.png").write_bytes(b"1")  # its folder was not looked into so far
    assert [unit.ids[-1] for unit in found] == ["b/late.png"]


def test_the_content_key_is_that_of_before_and_knows_the_reading(tmp_path):
    found = plan([str(write_folder(tmp_path / "f", "real", range(3)))])
    before = storage.digest([[u.kind, u.ids, u.source, u.split, u.bytes] for u in found])
    assert content_key(found) == content_key(iter(found)) == before
    read_otherwise = [dataclasses.replace(u, reading=Reading(columns=("x",))) for u in found]
    assert content_key(read_otherwise) != before


def test_units_survive_as_text_and_those_of_before_still_load():
    unit = Unit("table", ("/t.csv",), ("t",), None, None, 9, (1, 5), 44, Reading(columns=("a",)))
    assert unit_from_json(unit_to_json(unit)) == unit
    old = {
        "kind": "tar",
        "uris": ["/a.tar"],
        "ids": ["a"],
        "source": "x",
        "split": None,
        "bytes": 3,
    }
    assert unit_from_json(json.dumps(old)) == Unit("tar", ("/a.tar",), ("a",), "x", None, 3)


def test_names_that_are_no_text_still_make_rows(tmp_path):
    with open(bytes(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(png("real", 0))
    (row,) = read([tmp_path])
    assert row["error"] is None
    assert row["id"] == "%FF.png"


def test_patterns_tables_and_large_objects_on_s3(s3, tmp_path):
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    root = tmp_path / "in"
    for number in range(3):
        members = [(f"{n}.png", png("real", 10 * number + n)) for n in range(2)]
        root.mkdir(exist_ok=True)
        write_tar(root / f"{number:05d}.tar", members)
    write_folder(root / "sub", "real", range(4))
    (root / "sub" / "empty.png").write_bytes(b"")
    table = "url\nsub/0000.png\nsub/0003.png\nsub/gone.png\n/etc/passwd\n"
    (root / "t.csv").write_text(table)
    fs.put(str(root), "manifpt/patterns", recursive=True)
    for pattern in ("{00000..00001}.tar", "*.tar", "**/*.png", "sub/000[12].png", "{sub,*.tar}"):
        local, remote = (plan([f"{place}/{pattern}"]) for place in (root, f"{s3}/patterns"))
        assert [u.ids for u in local] == [u.ids for u in remote]
        assert content_key(local) == content_key(remote)
    with pytest.raises(ManifptError, match=r"0000[23]\.tar"):
        plan([f"{s3}/patterns/{{00000..00003}}.tar"])
    one, other = read([root / "sub"]), read([f"{s3}/patterns/sub"])
    same = ("id", "error", "sha256", "pixel_sha256")
    assert [[r[c] for c in same] for r in one] == [[r[c] for c in same] for r in other]
    assert [r["error"] for r in other] == [None] * 4 + ["empty"]
    errors = [row["error"] for row in read([f"{s3}/patterns/t.csv"])]
    assert errors == [None, None, "unreadable", "forbidden_address"]
    (unit, *_) = plan([f"{s3}/patterns/sub"])
    (small,) = read_unit(unit, DecodeRule(16, max_bytes=100))
    assert small["error"].to_pylist() == ["too_many_bytes"] * 4 + ["empty"]
    labelled = plan([f"{s3}/patterns/sub/.."[:-3]], labelled=True)
    assert [u.source for u in labelled] == [None]
    assert [u.ids for u in plan([f"{s3}/patterns/sub/0001.png"])] == [("0001.png",)]


@pytest.mark.parametrize("pattern", ["", "/*", "/{a.tar,a.tgz,a,a.parquet,b}", "/{*.t*,*a*,a}"])
def test_ids_are_unique_where_names_differ_by_their_ends(tmp_path, pattern):
    members = [("x.png", png("real", 0)), ("x.jpg", png("real", 1))]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "a.tgz", members)
    write_folder(tmp_path / "a", "real", range(1)).joinpath("0000.png").rename(
        tmp_path / "a" / "x.png"
    )
    write_folder(tmp_path / "b", "real", range(1))
    table = pa.table({"image": images(2), "key": ["x.png", "x.jpg"]})
    pq.write_table(table, tmp_path / "a.parquet")
    ids = [row["id"] for row in read([f"{tmp_path}{pattern}"])]
    assert len(set(ids)) == len(ids) >= 7


def test_ids_are_unique_where_a_name_is_given_twice(tmp_path):
    places = [write_folder(tmp_path / n / "same", "real", range(2)) for n in ("a", "b")]
    places.append(write_folder(tmp_path / "real", "real", range(2)))
    places.append(write_folder(tmp_path / "other", "real", range(2)))
    inputs = [f"real={place}" for place in places[:2]] + [str(places[2]), f"x={places[3]}"]
    ids = [row["id"] for row in read(inputs)]
    assert len(set(ids)) == 8
    assert ids[-2:] == ["x/0000.png", "x/0001.png"]


def test_errors_of_s3_name_the_remedy(s3, monkeypatch):
    with pytest.raises(ManifptError, match=r"no-such-bucket.*no such file"):
        plan(["s3://no-such-bucket/x"])
    with pytest.raises(ManifptError, match=r"nowhere.*no such file"):
        plan([f"{s3}/nowhere"])
    with pytest.raises(ManifptError, match="bucket's name"):
        plan(["s3://*/x"])
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ManifptError, match="AWS_SECRET_ACCESS_KEY"):
            list(listing.files(f"{s3}/x", listing.Listing()))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("MANIFPT_S3_SECONDS", "1")
        with pytest.raises(ManifptError, match="AWS_ENDPOINT_URL"):
            list(listing.files(f"{s3}/x", listing.Listing()))
    s3fs.S3FileSystem.clear_instance_cache()
