"""The shuffles find what a search in memory finds, however the corpus is cut."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifpt import storage
from manifpt.attribution.crawl import duplicates
from manifpt.attribution.crawl.duplicates import DUPLICATES, find_duplicates
from manifpt.engine import shuffle

NONE = -1


def by_brute_force(pixels, looks, distance):
    """The positions that images copy, exactly and nearly; looks are None for flat images."""
    exact, near = [], []
    for i in range(len(pixels)):
        exact.append(pixels.index(pixels[i]) if pixels.index(pixels[i]) < i else NONE)
        me = i if exact[i] == NONE else exact[i]
        alike = [
            j
            for j in range(me)
            if exact[j] == NONE
            and None not in (looks[j], looks[me])
            and (looks[j] ^ looks[me]).bit_count() <= distance
        ]
        near.append(alike[0] if alike else NONE)
    return exact, near


def expected(rows, distance):
    """The table as the definition says, made in memory from rows of ``part``."""
    ids, shas, pixels, looks = zip(*rows, strict=True) if rows else ((),) * 4
    exact, near = by_brute_force(pixels, looks, distance)
    made = {name: [] for name in DUPLICATES}
    for i, (copied, alike) in enumerate(zip(exact, near, strict=True)):
        if copied == alike == NONE:
            continue
        row = dict.fromkeys(DUPLICATES) | {"id": ids[i], "sha256": shas[i]}
        if copied != NONE:
            same = "bytes" if shas[copied] == shas[i] else "pixels"
            row |= {"duplicate_of": ids[copied], "same": same}
        if alike != NONE:
            first = i if copied == NONE else copied
            bits = (looks[first] ^ looks[alike]).bit_count()
            row |= {"near_duplicate_of": ids[alike], "distance": bits}
        for name, value in row.items():
            made[name].append(value)
    return pa.table(made, pa.schema(DUPLICATES.items()))


def sha(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def part(output, number, rows):
    kinds = [pa.string()] * 3 + [pa.uint64()]
    columns = zip(*rows, strict=True) if rows else ((),) * 4
    arrays = [pa.array(c, k) for c, k in zip(columns, kinds, strict=True)]
    table = pa.table(arrays, ["id", "sha256", "pixel_sha256", "perceptual_hash"])
    path = f"attributions/{number}.parquet"
    written = storage.write_bytes(storage.join(output, path), storage.parquet_bytes(table))
    return {"path": path, "folder": "attributions", "rows": len(rows), **written}


def corpus(seed, count=120):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 100, count)
    looks = rng.integers(0, 2**64, 12, dtype=np.uint64)[rng.integers(0, 12, 100)]
    for _ in range(2):
        looks ^= np.uint64(1) << rng.integers(0, 64, 100).astype(np.uint64)
    shown = [int(look) if rng.random() < 0.8 else None for look in looks]
    return [
        (f"i{n}", sha(f"{p} {rng.integers(2)}"), sha(p), shown[p]) for n, p in enumerate(pixels)
    ]


def read(output, entries):
    return pa.concat_tables([storage.read_parquet(f"{output}/{e['path']}") for e in entries])


@pytest.mark.parametrize(
    ("seed", "distance", "run", "partition"),
    [(0, 2, 2**20, 2**21), (1, 8, 2**20, 2**21), (2, 0, 30, 60), (3, 2, 20, 40), (4, 4, 30, 60)],
)
def test_copies_are_those_of_brute_force_however_the_corpus_is_cut(
    tmp_path, monkeypatch, seed, run, partition, distance
):
    monkeypatch.setattr(duplicates, "RUN_ROWS", run)
    monkeypatch.setattr(shuffle, "PARTITION_ROWS", partition)
    rows, output = corpus(seed), str(tmp_path)
    files = [part(output, n, rows[n * 8 : n * 8 + 8]) for n in range(15)]
    entries = find_duplicates(output, files, distance)
    table = expected(rows, distance)
    found = read(output, entries)
    assert found.to_pylist() == table.to_pylist()
    assert sum(e["exact"] for e in entries) == found["duplicate_of"].is_valid().to_numpy().sum()
    assert sum(e["near"] for e in entries) == found["near_duplicate_of"].is_valid().to_numpy().sum()
    assert len(entries) == (1 if run > 1000 else -(-15 // -(-run // 8)))
    if len(entries) == 1:  # the file is the one that a table in memory makes
        whole = storage.parquet_bytes(table)
        assert storage.read_bytes(f"{output}/duplicates/000000.parquet") == whole
    assert find_duplicates(output, files, distance) == entries
    assert not list((tmp_path / "_buckets").rglob("*.arrow"))


@pytest.mark.parametrize("rows", [[], [("a", sha("a"), sha("A"), None)]])
def test_a_corpus_without_copies_has_an_empty_table(tmp_path, rows):
    files = [part(str(tmp_path), 0, rows)] if rows else []
    (entry,) = find_duplicates(str(tmp_path), files, 2)
    assert (entry["rows"], entry["exact"], entry["near"]) == (0, 0, 0)
    assert pq.read_schema(f"{tmp_path}/{entry['path']}").names == list(DUPLICATES)


def test_the_table_names_the_first_of_each(tmp_path):
    output = str(tmp_path)
    rows = [
        ("z", sha("z"), sha("Z"), 0xFF),
        ("blank", sha("b"), sha("B"), None),
        ("again", sha("z"), sha("Z"), 0xFF),
        ("recoded", sha("r"), sha("Z"), 0xFF),
        ("near", sha("n"), sha("N"), 0xFC),
        ("copy of near", sha("n"), sha("N"), 0xFC),
        ("black", sha("k"), sha("K"), None),
        ("other", sha("o"), sha("O"), 0xFF00),
    ]
    files = [part(output, 0, rows[:2]), part(output, 1, rows[2:])]
    (entry,) = find_duplicates(output, files, 2, generation="-r1")
    assert entry["path"] == "duplicates/000000-r1.parquet"
    assert (entry["rows"], entry["exact"], entry["near"]) == (4, 3, 2)
    found = [tuple(row.values()) for row in read(output, [entry]).to_pylist()]
    assert [row[:1] + row[2:] for row in found] == [
        ("again", "z", "bytes", None, None),
        ("recoded", "z", "pixels", None, None),
        ("near", None, None, "z", 2),
        ("copy of near", "near", "bytes", "z", 2),
    ]


def test_a_step_that_was_cut_short_makes_only_the_files_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "RUN_ROWS", 40)
    monkeypatch.setattr(shuffle, "PARTITION_ROWS", 60)
    output, rows, made = str(tmp_path), corpus(5), []
    files = [part(output, n, rows[n * 8 : n * 8 + 8]) for n in range(15)]

    def cut(function, calls):
        for call in calls:
            if len(made) == 14:
                raise KeyboardInterrupt
            made.append(function.__name__)
            yield function(*call)

    with pytest.raises(KeyboardInterrupt):
        find_duplicates(output, files, 2, cut)
    assert made[-1] == "near"
    before = made.copy()
    made.clear()
    counted = []

    def noted(function, calls):
        for call in calls:
            counted.append(function.__name__)
            yield function(*call)

    entries = find_duplicates(output, files, 2, noted)
    assert read(output, entries).to_pylist() == expected(rows, 2).to_pylist()
    assert "pixels" not in counted
    assert counted.count("near") + before.count("near") == 3 * shuffle.partitions(120)
