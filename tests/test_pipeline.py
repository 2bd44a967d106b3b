"""Units, records, ids and status without a cluster; then results that no kill changes."""

import hashlib
import json
import os
import random
import time
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pytest

from manifpt import storage
from manifpt.engine import chunk_work, progress
from manifpt.engine.columns import GivenColumns
from manifpt.engine.unique import check_ids
from manifpt.engine.work import SHARD_UNITS, Work
from manifpt.errors import DamageError, ManifptError
from manifpt.images import plan
from manifpt.images.inventory import Inventory
from manifpt.images.sources import content_key, describe
from manifpt.outputs import claims, layouts, liveness, records

ROWS, CHUNKS = 4, 3
KEY = "0" * 64


def read(spec):
    """Three chunks of four rows a unit; every fifth row is in error."""
    for chunk in range(CHUNKS):
        numbers = [chunk * ROWS + i for i in range(ROWS)]
        yield pa.table(
            {
                "id": [f"{spec}/{n}" for n in numbers],
                "uri": [f"/{spec}/{n}" for n in numbers],
                "error": pa.array([None if n % 5 else "corrupt" for n in numbers], pa.string()),
                "message": pa.array([None if n % 5 else "no" for n in numbers], pa.string()),
            }
        )


read.gives = GivenColumns({"id": pa.string(), "uri": pa.string()}, "the table", "make it again")


class Copy:
    """A stage that returns its rows."""

    takes = read.gives.columns
    gives: ClassVar = {"attributions": takes}

    def __call__(self, table):
        return chunk_work.Result({"attributions": table})


def hashes(output: Path, *folders: str) -> dict[str, str]:
    return {
        f"{folder}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted((output / folder).iterdir())
    }


def worked(output: Path, units: list[int], until: int = CHUNKS) -> records.Records:
    """Work as the pipeline does, in this process, on the first chunks of units."""
    place = chunk_work.Place(str(output), time.time())
    rows = [row for u in units for row in list(chunk_work.chunks(read, str(u), u, set()))[:until]]
    return records.Records(chunk_work.work(Copy(), row, place) for row in rows)


def wait_for(path: Path) -> None:
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def test_units_are_read_back_one_by_one_from_shards(tmp_path):
    specs = [json.dumps({"n": n, "text": "x\u2028y"}) for n in range(SHARD_UNITS + 5)]
    made = Work.store(str(tmp_path), iter(specs), lambda: {"bytes": 7})
    found = Work.find(str(tmp_path))
    assert found == made
    assert (found.units, found.facts, len(found.first)) == (len(specs), {"bytes": 7}, 2)
    order = random.Random(0).sample(range(len(specs)), 200)
    assert [found.spec(n) for n in order] == [specs[n] for n in order]
    assert found.pinned("threads", 3) == 3
    assert Work.find(str(tmp_path)).pinned("threads", 5) == 3


def test_a_listing_that_was_cut_short_counts_for_nothing(tmp_path):
    def listing():
        yield "1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Work.store(str(tmp_path), listing())
    assert Work.find(str(tmp_path)) is None
    made = Work.store(str(tmp_path), iter(["1", "2"]))
    (tmp_path / "_work" / "00000.jsonl").write_text("1\n3")
    with pytest.raises(DamageError):
        made.spec(1)


def test_an_inventory_tells_what_sources_tell_of_all_units(corpus):
    inputs = [f"real={corpus}/manifold", f"{corpus}/labelled"]
    inventory, units = Inventory(inputs), plan(inputs)
    assert list(inventory) == units
    assert inventory.describe() == describe(inputs, units) | {"skipped": {}}
    assert inventory.key() == content_key(units)


def test_records_come_in_order_and_tell_which_units_are_done(tmp_path):
    made = worked(tmp_path, [2, 0])
    worked(tmp_path, [1], until=2)
    found = records.Records(records.stored(str(tmp_path)))
    assert [(r["unit"], r["chunk"]) for r in found][:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert (len(found), found[-1], found[:2]) == (8, made[-1], [made[0], made[1]])
    assert records.by_unit(found) == ({0, 2}, {1: {0, 1}})
    assert records.totals(made) == {
        "rows_in": 24, "ok": 18, "quarantined": 6, "by_error": {"corrupt": 6},
    }  # fmt: skip


def test_a_unit_without_rows_has_a_record(tmp_path):
    (row,) = chunk_work.chunks(lambda spec: iter(()), "0", 0, set())
    record = chunk_work.work(Copy(), row, chunk_work.Place(str(tmp_path), 0.0))
    assert (record["last"], record["rows_in"], record["parts"]) == (True, 0, [])


def test_chunks_that_are_done_are_left_out():
    made = [(r["chunk"], r["last"]) for r in chunk_work.chunks(read, "0", 0, {0, 2})]
    assert made == [(1, False)]
    assert [r["last"] for r in chunk_work.chunks(read, "0", 0, {1})] == [False, True]


@pytest.mark.parametrize("seed", range(3))
def test_parts_do_not_depend_on_order_or_on_what_was_cut_short(tmp_path, seed):
    worked(tmp_path / "a", [0, 1, 2])
    order = random.Random(seed).sample([0, 1, 2], 3)
    worked(tmp_path / "b", order[:2], until=1)
    (tmp_path / "b" / "attributions" / "000001-000000.parquet.12345678.partial").write_bytes(
        b"half"
    )
    worked(tmp_path / "b", order)
    layouts.clear_halves(str(tmp_path / "b"), "attributions")
    folders = ("attributions", "quarantine")
    assert hashes(tmp_path / "a", *folders) == hashes(tmp_path / "b", *folders)


def test_ids_that_come_twice_are_named(tmp_path):
    worked(tmp_path, [0, 1])
    found = records.parts(records.stored(str(tmp_path)))
    check_ids(str(tmp_path), found)
    table = pa.table({"id": ["new", "1/4"]})
    storage.write_bytes(f"{tmp_path}/attributions/2.parquet", storage.parquet_bytes(table))
    with pytest.raises(ManifptError, match=r"name several images: 1/4; .*NAME=URI"):
        check_ids(str(tmp_path), [*found, {"path": "attributions/2.parquet", "rows": 1}])


def test_status_is_read_from_storage_alone(tmp_path):
    output = str(tmp_path / "out")
    with pytest.raises(ManifptError, match="--status"):
        progress.status(output)
    with claims.claim(output, "attributions", KEY):
        wait_for(Path(output) / layouts.ALIVE)
        assert progress.status(output)["units"] is None
        Work.store(output, map(str, range(4)))
        begun = time.time()
        worked(Path(output), [0])
        worked(Path(output), [1], until=1)
        found = progress.status(output, begun + 10)
    assert (found["state"], found["units_done"], found["units"]) == ("running", 1, 4)
    assert (found["rows_in"], found["ok"], found["by_error"]) == (16, 12, {"corrupt": 4})
    assert found["rows_per_second"] > 0
    assert 9 < found["last_record_seconds_ago"] <= 10
    assert found["seconds_left"] > 0
    assert progress.status(output)["state"] == "interrupted"
    assert "1/4" in progress.status_text(progress.status(output))
    with claims.claim(output, "attributions", KEY) as claim:
        claim.publish(records.totals(records.stored(output)))
    found = progress.status(output)
    assert (found["state"], found["units_done"], found["ok"]) == ("finished", 4, 12)
    assert "corrupt" in progress.status_text(found)


def test_a_job_that_was_killed_is_found_interrupted(tmp_path):
    output = str(tmp_path)
    pid = os.fork()
    if pid == 0:
        with claims.claim(output, "attributions", KEY):
            time.sleep(100)
    wait_for(tmp_path / layouts.ALIVE)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    now = time.time()
    assert progress.status(output, now)["state"] == "running"
    assert progress.status(output, now + 2 * liveness.SILENCE_SECONDS)["state"] == "interrupted"
