import hashlib

import numpy as np
import pyarrow as pa
import pytest

from manifpt import storage
from manifpt.attribution.crawl.duplicates import NONE, copies, write_duplicates


def by_brute_force(pixels, looks, has, distance):
    exact, near = [], []
    for i in range(len(pixels)):
        same = [j for j in range(i) if (pixels[j] == pixels[i]).all()]
        exact.append(same[0] if same else NONE)
        me = same[0] if same else i
        alike = [
            j
            for j in range(me)
            if exact[j] == NONE
            and has[j]
            and has[me]
            and int(looks[j] ^ looks[me]).bit_count() <= distance
        ]
        near.append(alike[0] if alike else NONE)
    return exact, near


def corpus(seed, count=120):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 40, (count, 2)).astype(np.uint64) // np.uint64(4)
    looks = rng.integers(0, 2**64, 12, dtype=np.uint64)[rng.integers(0, 12, count)]
    looks ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    looks ^= np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
    return pixels, looks, rng.random(count) < 0.8


@pytest.mark.parametrize("distance", [0, 2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_copies_are_those_of_brute_force(seed, distance):
    pixels, looks, has = corpus(seed)
    found = copies(pixels, looks, has, distance)
    exact, near = by_brute_force(pixels, looks, has, distance)
    assert found.exact.tolist() == exact
    assert found.near.tolist() == near


def test_no_images_have_no_copies():
    found = copies(np.empty((0, 2), np.uint64), np.empty(0, np.uint64), np.empty(0, bool), 4)
    assert len(found.exact) == len(found.near) == 0


def part(output, number, rows):
    kinds = [pa.string()] * 3 + [pa.uint64()]
    columns = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    table = pa.table(columns, ["id", "sha256", "pixel_sha256", "perceptual_hash"])
    path = f"attributions/{number}.parquet"
    storage.write_bytes(storage.join(output, path), storage.parquet_bytes(table))
    return path


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_table_names_the_first_of_each_and_is_the_same_again(tmp_path):
    output = str(tmp_path)
    paths = [
        part(output, 0, [("z", sha("z"), sha("Z"), 0xFF), ("blank", sha("b"), sha("B"), None)]),
        part(
            output,
            1,
            [
                ("again", sha("z"), sha("Z"), 0xFF),
                ("recoded", sha("r"), sha("Z"), 0xFF),
                ("near", sha("n"), sha("N"), 0xFC),
                ("copy of near", sha("n"), sha("N"), 0xFC),
                ("black", sha("k"), sha("K"), None),
                ("other", sha("o"), sha("O"), 0xFF00),
            ],
        ),
    ]
    entry = write_duplicates(output, paths, 2)
    assert (entry["rows"], entry["exact"], entry["near"]) == (4, 3, 2)
    rows = storage.read_parquet(storage.join(output, entry["path"])).to_pylist()
    assert [tuple(row.values())[:1] + tuple(row.values())[2:] for row in rows] == [
        ("again", "z", "bytes", None, None),
        ("recoded", "z", "pixels", None, None),
        ("near", None, None, "z", 2),
        ("copy of near", "near", "bytes", "z", 2),
    ]
    assert write_duplicates(output, paths, 2)["sha256"] == entry["sha256"]
