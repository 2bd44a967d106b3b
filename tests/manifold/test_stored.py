"""Manifolds on disk: how they are read, searched from wherever they lie, and grow."""

import ast
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from conftest import draw, folder_of

from manifpt import storage
from manifpt.engine import pools
from manifpt.errors import DamageError, ManifptError
from manifpt.jobs import append, build_manifold
from manifpt.manifold import StoredManifold, nearest
from manifpt.manifold.embed import write_rows
from manifpt.manifold.growth import append_to_manifold, compact_manifold, merge_groups
from manifpt.manifold.placement import Replicated, Sharded, place
from manifpt.manifold.search import SearchPlan
from manifpt.manifold.shard import ROWS
from manifpt.outputs import claims

SIZE = 16


@pytest.fixture(scope="module")
def queries():
    rng = np.random.default_rng(0)
    images = np.stack([draw(kind, n, SIZE) for kind in ("stripes", "blocks") for n in range(20)])
    vectors = images.transpose(0, 3, 1, 2).reshape(40, -1).astype(np.float32) / np.float32(255)
    return vectors, np.full(40, "", dtype=object), rng


def brute(manifold, x, k):
    whole = manifold.read(SearchPlan())
    distance = np.stack([np.linalg.norm(q.astype(np.float64) - whole.vectors, axis=1) for q in x])
    order = np.argsort(distance, axis=1)[:, :k]
    return np.take_along_axis(distance, order, 1), whole.ids[order]


def test_what_is_read_is_what_was_written_in_one_piece_or_in_blocks(built):
    manifold = StoredManifold.open(built)
    whole = manifold.read(SearchPlan("bounds"))
    assert len(whole.ids) == manifold.manifest["reals"] == 300
    assert whole.keys.shape == (300, len(manifold.basis.directions) + 1)
    blocks = list(manifold.blocks(7 * 4 * manifold.dimension))
    assert max(len(block.ids) for block in blocks) == 7
    assert np.array_equal(np.concatenate([b.vectors for b in blocks]), whole.vectors)
    assert np.array_equal(np.concatenate([b.ids for b in blocks]), whole.ids)


def test_every_placement_finds_the_same(whole_cluster, built, queries, capsys):
    x, nobody, _ = queries
    manifold = StoredManifold.open(built)
    distance, ids = brute(manifold, x, 3)
    for search in ("exact-plain", "exact-pruned"):
        for kind in ("replicated", "sharded", "scan"):
            demand = pools.SearchDemand(search, kind, 2**20)
            pool = pools.pool(pools.ANY, uses_gpu=False)
            placement, _ = place(manifold, demand, pool)
            found = placement.searcher().nearest(x, 3, nobody)
            assert found.id.tolist() == ids.tolist(), placement
            np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


@pytest.mark.parametrize(
    ("memory", "kind"), [(2**30, "replicated"), (2**20, "sharded"), (2**18, "scan")]
)
def test_the_placement_follows_from_the_memory(whole_cluster, built, memory, kind):
    pool = pools.pool(pools.ANY, uses_gpu=False)
    placement, smaller = place(StoredManifold.open(built), pools.SearchDemand(memory=memory), pool)
    assert placement.kind == kind
    assert kind in str(placement)
    assert smaller.size * smaller.num_cpus + placement.reserved.get("CPU", 0) < 4


def test_a_holder_that_dies_comes_back_with_its_shards(whole_cluster, built, queries):
    import ray

    x, nobody, _ = queries
    manifold = StoredManifold.open(built)
    pool = pools.pool(pools.ANY, uses_gpu=False)
    placement, _ = place(manifold, pools.SearchDemand(placement="sharded"), pool)
    searcher = placement.searcher()
    assert isinstance(searcher, Sharded)
    before = searcher.nearest(x, 2, nobody)
    whole = Replicated(built, placement.plan).nearest(x, 2, nobody)
    assert before.vector.tobytes() == whole.vector.tobytes()
    ray.kill(searcher.holders[0], no_restart=False)
    after = searcher.nearest(x, 2, nobody)
    assert before.id.tolist() == after.id.tolist()
    assert before.distance.tobytes() == after.distance.tobytes()


def test_the_plan_and_the_held_out_distances_are_recorded(built, capsys):
    manifold = StoredManifold.open(built)
    found = manifold.manifest["search"]
    assert found["chosen"] in found["plans"]
    assert len(found["measured"]) >= 4
    assert 0.2 < found["index"]["recall"] <= 1
    assert manifold.percentile(np.array([0.0, 1e9])).tolist() == [0, 100]
    whole = manifold.read(SearchPlan())
    alone = nearest([whole], whole.vectors, 1, whole.pixel_sha256).distance[:, 0]
    assert np.median(manifold.percentile(alone)) == pytest.approx(50, abs=3)
    assert build_manifold.main(["--explain", "--output", built]) == 0
    told = capsys.readouterr().out
    assert found["chosen"] in told
    assert "recall" in told


def test_approximate_search_is_only_what_it_says(built, queries):
    x, nobody, _ = queries
    manifold = StoredManifold.open(built)
    pool = pools.pool(pools.ANY, uses_gpu=False)
    placement, _ = place(manifold, pools.SearchDemand("approximate"), pool)
    found = placement.searcher().nearest(x, 1, nobody)
    distance, _ = brute(manifold, x, 1)
    assert (found.distance >= distance * (1 - 1e-12)).all()  # distances are true ones
    with pytest.raises(ManifptError, match="lies whole"):
        place(manifold, pools.SearchDemand("approximate", "scan"), pool)


def test_appending_equals_building_at_once(ray_session, tmp_path):
    one = folder_of(tmp_path / "one", range(60))
    two = folder_of(tmp_path / "two", range(40, 110))  # twenty are copies
    for name, inputs in (("grown", [one]), ("whole", [one, two])):
        flags = ["--input", *inputs, "--output", f"{tmp_path}/{name}", "--shards", "3"]
        assert build_manifold.main(flags) == 0
    before = storage.read_json(f"{tmp_path}/grown/manifest.json")
    grow = [f"{tmp_path}/grown", "--input", two]
    assert append.main(grow) == 0
    grown = storage.read_json(f"{tmp_path}/grown/manifest.json")
    assert grown["reals"] == 110
    assert grown["appended"][0]["duplicates"] == 20
    assert grown["shards"][:3] == before["shards"]  # the old are untouched
    assert append.main(grow) == 0  # the same again does nothing
    assert storage.read_json(f"{tmp_path}/grown/manifest.json") == grown
    small = compact_manifold(f"{tmp_path}/grown", 2)
    assert len(small["shards"]) < len(grown["shards"])
    assert small["content_sha256"] == grown["content_sha256"]
    whole = StoredManifold.open(f"{tmp_path}/whole").read(SearchPlan())
    other = StoredManifold.open(f"{tmp_path}/grown").read(SearchPlan())
    assert sorted(zip(whole.pixel_sha256, map(bytes, whole.vectors), strict=True)) == sorted(
        zip(other.pixel_sha256, map(bytes, other.vectors), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "s3"])
def test_concurrent_appends_lose_nothing(where, s3, whole_cluster, tmp_path):
    out = f"{s3}/grow/m" if where == "s3" else f"{tmp_path}/m"
    first = folder_of(tmp_path / "first", range(20))
    assert build_manifold.main(["--input", first, "--output", out, "--shards", "2"]) == 0
    parts = [folder_of(tmp_path / f"part{n}", range(10 + 20 * n, 40 + 20 * n)) for n in range(2)]
    errors = []

    def append(part):
        try:
            append_to_manifold([part], out, demand=pools.Demand(1))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=append, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    manifold = StoredManifold.open(out)
    hashes = manifold.read(SearchPlan()).pixel_sha256
    assert len(hashes) == len(set(hashes)) == manifold.manifest["reals"] == 60
    assert len(manifold.manifest["appended"]) == 2


def test_groups_of_small_shards():
    assert merge_groups([10, 1, 1, 1, 10], 4) == [[1, 2, 3]]
    assert merge_groups([3, 3, 3], 4) == []
    assert merge_groups([1, 2, 1, 2, 3], 4) == [[0, 1, 2]]


def test_a_damaged_shard_is_refused(built, tmp_path):
    import shutil

    shutil.copytree(built, tmp_path / "m")
    entry = StoredManifold.open(f"{tmp_path}/m").manifest["shards"][2]["vectors"]
    path = tmp_path / "m" / entry["path"]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamageError, match="differs"):
        StoredManifold.open(f"{tmp_path}/m").read(SearchPlan())
    with pytest.raises(DamageError, match="differs"):
        list(StoredManifold.open(f"{tmp_path}/m").blocks(2**20))


PEAK = """
import resource, sys, numpy as np
from manifpt.manifold import StoredManifold
from manifpt.manifold.embed import write_rows
from manifpt.manifold.placement import Scan
from manifpt.manifold.search import SearchPlan
from manifpt.manifold.shard import ROWS

rng = np.random.default_rng(0)
queries = rng.random((64, 3072), dtype=np.float32)
nobody = np.full(64, "", dtype=object)
Scan(sys.argv[2], SearchPlan(), 2**16).nearest(queries, 1, nobody)  # all that is needed once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = Scan(sys.argv[1], SearchPlan(), int(sys.argv[3])).nearest(queries, 2, nobody)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(2**10 * (after - before), found.id[:, 0].tolist())
"""


def test_a_manifold_larger_than_memory_is_scanned_in_blocks(tmp_path):
    rng = np.random.default_rng(1)
    memory = 32 * 2**20
    for name, count in (("large", 11_000), ("small", 10)):
        ids = [f"{n:06d}" for n in range(count)]
        rows = pa.table(dict.fromkeys(ROWS, ids))
        vectors = rng.random((count, 3072), dtype=np.float32)
        with claims.claim(f"{tmp_path}/{name}", "manifold", storage.digest(name)) as claim:
            entry = write_rows(f"{tmp_path}/{name}", "shard-00000", rows, vectors)
            draft = {"metric": "euclidean", "shape": [3, 32, 32], "reals": count}
            claim.publish(draft | {"search": {"basis": None}, "shards": [entry]})
    assert StoredManifold.open(f"{tmp_path}/large").size > 4 * memory
    command = [sys.executable, "-c", PEAK, f"{tmp_path}/large", f"{tmp_path}/small"]
    told = subprocess.run([*command, str(memory // 2)], capture_output=True, text=True, check=True)
    grown, _, ids = told.stdout.partition(" ")
    assert int(grown) < memory
    queries = np.random.default_rng(0).random((64, 3072), dtype=np.float32)
    _, expected = brute(StoredManifold.open(f"{tmp_path}/large"), queries[:4], 1)
    assert ast.literal_eval(ids)[:4] == expected[:, 0].tolist()
