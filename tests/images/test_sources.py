import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png, write_folder, write_tar

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, plan, read_unit

RULE = DecodeRule(16)


def rows(inputs, selection=Selection(), **options):
    units = plan([str(i) for i in inputs], selection, **options)
    return [row for u in units for t in read_unit(u, RULE, selection) for row in t.to_pylist()]


def test_the_same_images_from_folder_tar_and_parquet(tmp_path):
    folder = write_folder(tmp_path / "folder", "real", range(5))
    data = [(folder / f"{n:04d}.png").read_bytes() for n in range(5)]
    tar = write_tar(tmp_path / "a.tar", [(f"{n:04d}.png", d) for n, d in enumerate(data)])
    table = pa.table({"image": [{"bytes": d, "path": str(n)} for n, d in enumerate(data)]})
    pq.write_table(table, tmp_path / "a.parquet")
    hashes = [
        [row["pixel_sha256"] for row in rows([source])]
        for source in (folder, tar, tmp_path / "a.parquet")
    ]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes[0])) == 5


def test_sources_come_from_names_from_folders_or_from_json(tmp_path):
    root = tmp_path / "root"
    for kind in ("a", "b"):
        write_folder(root / kind, kind, range(2))
    assert [r["source"] for r in rows([root])] == [None] * 4
    assert [r["source"] for r in rows([root], labelled=True)] == ["a", "a", "b", "b"]
    assert [r["source"] for r in rows([f"x={root}"])] == ["x"] * 4
    facts = [json.dumps({"source": s, "split": "test"}).encode() for s in ("a", "b")]
    tar = write_tar(
        tmp_path / "j.tar",
        [
            ("0.png", png("a", 0)),
            ("0.json", facts[0]),
            ("1.png", png("b", 1)),
            ("1.json", facts[1]),
        ],
    )
    assert [(r["source"], r["split"]) for r in rows([tar])] == [("a", "test"), ("b", "test")]
    assert len(rows([tar], Selection(sources=("b",)))) == 1
    assert rows([tar], Selection(splits=("train",))) == []


def test_every_file_ends_in_one_row_and_ids_are_unique(tmp_path):
    members = [
        ("x.png", png("a", 0)),
        ("x.png", png("a", 1)),
        ("y.jpg", b"broken"),
        ("y.png", png("a", 2)),
        ("z.json", b"{}"),
        ("sub/x.png", png("a", 3)),
    ]
    found = rows([write_tar(tmp_path / "odd.tar", members)])
    assert len({r["id"] for r in found}) == len(found) == 6
    assert [r["error"] for r in found].count(None) == 4
    assert {r["error"] for r in found} == {None, "unknown_format", "missing_image"}


def test_a_broken_tar_keeps_what_came_before(tmp_path):
    tar = write_tar(tmp_path / "t.tar", [(f"{n}.png", png("a", n)) for n in range(4)])
    tar.write_bytes(tar.read_bytes()[:3000])
    found = rows([tar])
    assert found[0]["error"] is None
    assert found[-1]["error"] == "broken_archive"


def test_ids_do_not_depend_on_the_place(tmp_path):
    first = write_folder(tmp_path / "one" / "data", "real", range(3))
    second = write_folder(tmp_path / "two" / "elsewhere", "real", range(3))
    ids = [[r["id"] for r in rows([f"real={f}"])] for f in (first, second)]
    assert ids[0] == ids[1] == ["real/0000.png", "real/0001.png", "real/0002.png"]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (["/no/such/place"], "no such file"),
        (["ftp://bucket/x"], "unknown scheme"),
        (["a=/tmp", "a=/tmp"], "given twice"),
    ],
)
def test_bad_inputs_are_one_line(inputs, words):
    with pytest.raises(ManifptError, match=words) as error:
        plan(inputs)
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ManifptError, match="holds no files"):
        plan([str(tmp_path)])
