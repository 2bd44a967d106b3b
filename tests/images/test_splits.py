"""Splits by a column: oracles are hashlib and the ids of the images."""

import csv
import hashlib
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw, png, write_folder, write_tar
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from manifpt import outputs, storage
from manifpt.images.splits import split_of, splits_of
from manifpt.jobs import compute_artifacts, train_attribution

SPLITS = ("train", "validation", "test")


def images(prompts, declared=None, ids=None, sources=None):
    count = len(prompts)
    columns = {
        "id": pa.array(ids or [f"{n}.png" for n in range(count)], pa.string()),
        "source": pa.array(sources or [None] * count, pa.string()),
        "split": pa.array(declared or [None] * count, pa.string()),
        "pixel_sha256": [hashlib.sha256(str(n).encode()).hexdigest() for n in range(count)],
        "prompt": pa.array(prompts, pa.string()),
    }
    return pa.table(columns)


def by_hash(text: str) -> str:
    share = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 16**15 / 16**15
    return "test" if share < 0.2 else "validation" if share < 0.3 else "train"


@given(st.lists(st.one_of(st.none(), st.text("abü ", max_size=3)), max_size=20), st.randoms())
def test_the_value_decides_whatever_the_order_and_content_where_there_is_none(prompts, random):
    table = images(prompts)
    found = splits_of(table, "content", "prompt")
    expected = [by_hash(p or str(n)) for n, p in enumerate(prompts)]
    assert found.names == expected
    assert found.by_value == sum(bool(p) for p in prompts)
    assert found.without_value == len(prompts) - found.by_value
    order = list(range(len(prompts)))
    random.shuffle(order)
    turned = table.take(pa.array(order, pa.int64()))
    assert splits_of(turned, "content", "prompt").names == [expected[n] for n in order]


def test_shares_are_70_10_20_and_what_is_declared_wins():
    names = [by_hash(f"prompt {n}") for n in range(4000)]
    found = splits_of(images([f"prompt {n}" for n in range(4000)]), "content", "prompt").names
    assert found == names
    shares = [found.count(name) / 4000 for name in SPLITS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    declared = splits_of(images(["a", "b"], ["test", None]), "content", "prompt")
    assert declared == (["test", by_hash("b")], 1, 0)
    assert splits_of(images(["a", None]), "test", None) == (["test", "test"], 0, 0)
    assert splits_of(images(["a", None]), "content", None).names == [by_hash("0"), by_hash("1")]
    assert split_of("f" * 64) == "train"


def test_folders_are_those_inside_a_source():
    ids = ["dcgan/scene 1/x.png", "real/scene 1/y.png", "scene 1/z.png", "real/a.png", "b.png"]
    sources = ["dcgan", "real", None, "real", None]
    found = splits_of(images([None] * 5, ids=ids, sources=sources), "content", "folder")
    assert found == ([by_hash("scene 1")] * 3 + [by_hash("3"), by_hash("4")], 3, 2)


def rows_of(folder):
    tables = [
        storage.read_parquet(str(path), ["id", "source", "split", "pixel_sha256"])
        for split in SPLITS
        for path in sorted((folder / split).glob("*.parquet"))
    ]
    return {row["id"]: row for row in pa.concat_tables(tables).to_pylist()}


def test_sources_of_several_kinds_with_the_same_prompts_are_split_alike(ray_session, tmp_path):
    """Parquet with bytes, a table of URIs, and loose files, which have no prompt."""
    prompts = [f"prompt {n // 4}" for n in range(40)]
    (tmp_path / "p").mkdir()
    bytes_of = [png("stripes", n) for n in range(40)]
    with_gap = [None if n == 7 else p for n, p in enumerate(prompts)]
    table = pa.table({"image": pa.array(bytes_of, pa.binary()), "prompt": pa.array(with_gap)})
    pq.write_table(table, tmp_path / "p" / "stripes.parquet")
    write_folder(tmp_path / "files", "blocks", range(40))
    with (tmp_path / "blocks.csv").open("w", newline="") as file:
        lines = [(f"{tmp_path}/files/{n:04d}.png", p) for n, p in enumerate(prompts)]
        csv.writer(file).writerows([("url", "prompt"), *lines])
    write_folder(tmp_path / "real", "real", range(20))
    inputs = [f"stripes={tmp_path}/p", f"blocks={tmp_path}/blocks.csv", f"real={tmp_path}/real"]
    flags = ["--input", *inputs, "--space", "image", "--split-by", "prompt"]
    out = tmp_path / "a"
    assert compute_artifacts.main([*flags, "--output", str(out), "--json", f"{out}.json"]) == 0
    counts = {"column": "prompt", "by_value": 79, "without_value": 21}
    assert json.loads((tmp_path / "a.json").read_text())["split_by"] == counts
    manifest = outputs.read(str(out))
    assert manifest["split_by"] == counts
    rows = rows_of(out)
    assert len(rows) == 100
    for name, row in rows.items():
        number = int(name.rpartition("/")[2].removesuffix(".png"))
        pixels = row["pixel_sha256"]
        of_source = {"stripes": with_gap, "blocks": prompts, "real": [None] * 20}
        prompt = of_source[row["source"]][number]
        assert row["split"] == (split_of(pixels) if prompt is None else by_hash(prompt))
    again = compute_artifacts.main([*flags[:-2], "--output", str(out)])
    assert again == 2  # other settings: the column is part of the key
    trained = ["--input", str(out), "--output", f"{tmp_path}/t", "--split-by", "prompt"]
    assert train_attribution.main(trained) == 2


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--split-by", "scene"], "--split-by scene: no image of --input has a value"),
        (["--split-by", "sha256"], "--split-by sha256: taken"),
        (["--split-by", "prompt", "--split", "test"], "--split test puts all on one side"),
    ],
)
def test_a_column_that_is_not_there_is_an_error_of_one_line(tmp_path, capsys, option, words):
    image = np.asarray(draw("real", 0))
    Image.fromarray(image).save(tmp_path / "x.png")
    table = {"path": ["x.png"], "prompt": ["a"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    for name in ("t.parquet", "x.png"):
        flags = ["--input", f"real={tmp_path}/{name}", "--space", "image", *option]
        assert compute_artifacts.main([*flags, "--output", f"{tmp_path}/out"]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_column_that_tars_do_not_have_is_found_out_at_the_end(ray_session, tmp_path, capsys):
    members = [(f"{n}.png", png("real", n)) for n in range(3)]
    described = [(f"{n}.json", json.dumps({"prompt": "a"}).encode()) for n in range(3)]
    both = itertools.chain.from_iterable(zip(members, described, strict=True))
    tar = write_tar(tmp_path / "t.tar", list(both))
    flags = ["--input", f"real={tar}", "--space", "image", "--output"]
    assert compute_artifacts.main([*flags, f"{tmp_path}/b", "--split-by", "scene"]) == 2
    assert "--split-by scene: no image" in capsys.readouterr().err.splitlines()[-1]
    assert outputs.read(f"{tmp_path}/b") is None
    assert compute_artifacts.main([*flags, f"{tmp_path}/a", "--split-by", "prompt"]) == 0
    assert {row["split"] for row in rows_of(tmp_path / "a").values()} == {by_hash("a")}
