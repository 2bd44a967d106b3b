"""Larger files have the same rows in the same order; retries and records of before go on."""

import json
import time

import pyarrow as pa
import pytest

from manifpt import outputs, storage
from manifpt.attribution.crawl import retry
from manifpt.engine import chunk_work, rollup, shuffle
from manifpt.engine.work import Work
from manifpt.errors import DamageError
from manifpt.outputs import claims, manifests, records

CHUNKS, ROWS, UNITS = 3, 4, 12
FOLDERS = ("attributions", "quarantine")
KEY = "0" * 64


def read(spec):
    """Three chunks of four rows a unit; every fifth row is in error."""
    for chunk in range(CHUNKS):
        numbers = range(chunk * ROWS, (chunk + 1) * ROWS)
        errors = [None if n % 5 else "corrupt" for n in numbers]
        columns = {
            "id": [f"{spec}/{n}" for n in numbers],
            "uri": [f"/{spec}/{n}" for n in numbers],
            "error": pa.array(errors, pa.string()),
            "message": pa.array(errors, pa.string()),
        }
        yield pa.table(columns)


def worked(output, generation="", units=range(UNITS)):
    place = chunk_work.Place(str(output), time.time(), generation)
    rows = [row for u in units for row in chunk_work.chunks(read, str(u), u, set())]

    def stage(table):
        return chunk_work.Result({"attributions": table})

    return records.Records(chunk_work.work(stage, row, place) for row in rows)


def ids(output, files, folder):
    uris = [storage.join(str(output), f["path"]) for f in files if f["folder"] == folder]
    return [id_ for uri in uris for id_ in storage.read_parquet(uri)["id"].to_pylist()]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rollup, "PART_ROWS", 20)
    monkeypatch.setattr(rollup, "FEW", 4)


def test_the_rows_are_the_same_in_the_same_order(tmp_path, small):
    made = worked(tmp_path)
    parts = records.parts(made)
    files = rollup.rolled(str(tmp_path), made, FOLDERS, shuffle.call_here)
    for folder in FOLDERS:
        assert ids(tmp_path, files, folder) == ids(tmp_path, parts, folder)
    several = [f for f in files if f["folder"] == "attributions"]
    assert all(20 <= file["rows"] <= 24 for file in several[:-1])
    for file in files:
        assert sum(rows for _, rows in rollup.units_of(file)) == file["rows"]
        found = storage.read_parquet(f"{tmp_path}/{file['path']}")["id"].to_pylist()
        named = [str(unit) for unit, rows in rollup.units_of(file) for _ in range(rows)]
        assert [id_.split("/")[0] for id_ in found] == named
    # A file of quarantined rows has all of a unit's.
    units = [u for f in files if f["folder"] == "quarantine" for u, _ in rollup.units_of(f)]
    assert units == list(range(UNITS))
    assert rollup.rolled(str(tmp_path), made, FOLDERS, shuffle.call_here) == files


def test_few_chunks_stay_as_they_are(tmp_path):
    made = worked(tmp_path, units=[0, 1])
    assert rollup.rolled(str(tmp_path), made, FOLDERS, shuffle.call_here) == records.parts(made)


def test_what_was_cut_short_goes_on_and_what_is_damaged_is_made_again(tmp_path, small):
    whole = rollup.rolled(str(tmp_path / "a"), worked(tmp_path / "a"), FOLDERS, shuffle.call_here)
    made, output = worked(tmp_path / "b"), str(tmp_path / "b")

    def cut(function, calls):
        for number, call in enumerate(calls):
            if number == 3:
                raise KeyboardInterrupt
            yield function(*call)

    with pytest.raises(KeyboardInterrupt):
        rollup.rolled(output, made, FOLDERS, cut)
    (tmp_path / "b" / whole[0]["path"]).write_bytes(b"half")
    (tmp_path / "b" / made[20]["parts"][0]["path"]).write_bytes(b"half")
    with pytest.raises(DamageError, match="the same command makes it again"):
        rollup.rolled(output, made, FOLDERS, shuffle.call_here)
    assert (made[20]["unit"], made[20]["chunk"]) not in {
        (r["unit"], r["chunk"]) for r in records.stored(output)
    }
    again = rollup.rolled(output, worked(tmp_path / "b"), FOLDERS, shuffle.call_here)
    assert again == whole


def test_rows_in_larger_files_are_tried_again(tmp_path, small):
    output = str(tmp_path)
    Work.store(output, (str(n) for n in range(UNITS)))
    made = worked(tmp_path)
    files = rollup.rolled(output, made, FOLDERS, shuffle.call_here)
    manifest = {"files": files} | records.totals(made)
    retry.remove_unlisted(output, files)
    tried = retry.work_to_retry(output, files, ["corrupt"])
    assert (set(tried.files), tried.errors["corrupt"]) == (set(range(UNITS)), 3 * UNITS)
    (spec,) = [json.loads(tried.spec(5))]
    rows = [row for f in spec["files"] for row in retry._rows(output, f, "quarantine")]
    assert [row["id"] for row in rows] == ["5/0", "5/5", "5/10"]
    known = [row for f in spec["files"] for row in retry._rows(output, f, "attributions", ["id"])]
    assert [row["id"] for row in known] == [f"5/{n}" for n in range(12) if n % 5]
    assert not retry.work_to_retry(output, files, ["unreadable"]).files

    # All units of the first file of quarantined rows come again, and no other.
    first = next(file for file in files if file["folder"] == "quarantine")
    some = retry.RetryWork(
        **vars(Work.find(output)), files={u: [] for u, _ in rollup.units_of(first)}
    )
    some.errors.update({"corrupt": first["rows"]})
    new = records.Records()
    merged, counts = retry.merged_output(manifest, some, new, [])
    assert first not in merged
    assert len(merged) == len(files) - 1
    assert counts["quarantined"] == 3 * UNITS - first["rows"]


def test_parts_of_earlier_versions_are_tried_again(tmp_path):
    output = str(tmp_path)
    Work.store(output, ["0", "1"])
    files = records.parts(worked(tmp_path, units=[0, 1]))
    tried = retry.work_to_retry(output, files, [])
    assert [len(some) for some in tried.files.values()] == [6, 6]
    spec = json.loads(tried.spec(1))
    rows = [row for f in spec["files"] for row in retry._rows(output, f, "quarantine")]
    assert [row["id"] for row in rows] == ["1/0", "1/5", "1/10"]


def test_records_are_gathered_and_one_of_them_can_be_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "GATHERED", 5)
    made, gatherer = worked(tmp_path, units=[0, 1, 2, 3]), records.Gatherer(str(tmp_path))
    for record in made:
        gatherer.add(record)
    names = sorted(path.name for path in (tmp_path / "_records").iterdir())
    assert names == ["000000.jsonl", "000001.jsonl", "000003-000001.json", "000003-000002.json"]
    assert list(records.Records(records.stored(str(tmp_path)))) == list(made)
    assert records.Gatherer(str(tmp_path)).files == 2
    records.forget_chunks(str(tmp_path), ["x/quarantine/000001-000002.parquet"])
    left = records.Records(records.stored(str(tmp_path)))
    assert len(left) == len(made) - 1
    assert records.by_unit(left)[1] == {1: {0, 1}}
    records.clear(str(tmp_path))
    assert not (tmp_path / "_records").exists()


@pytest.mark.parametrize("most", [10, 10_000])
def test_a_long_list_of_files_lies_beside_the_manifest(tmp_path, monkeypatch, most):
    monkeypatch.setattr(manifests, "MOST_FILES", most)
    output = str(tmp_path)
    with claims.claim(output, "attributions", KEY) as claim:
        files = records.parts(worked(tmp_path, units=range(6)))
        claim.publish({"files": files})
    raw = storage.read_json(f"{output}/manifest.json")
    assert outputs.read(output)["files"] == files
    assert len(raw["files"]) == (0 if most == 10 else len(files))
    assert outputs.files_of(output, raw) == files
    if most == 10:
        assert [part["rows"] for part in raw["file_lists"]] == [10, 10, 10, len(files) - 30]
        with claims.claim(output, "attributions", KEY, again=True) as claim:
            claim.publish({"files": files[:15]})
        assert outputs.require(output, "attributions", "--x")["files"] == files[:15]
        assert len(list((tmp_path / "_files").iterdir())) == 2
        raw = storage.read_json(f"{output}/manifest.json")
        (tmp_path / raw["file_lists"][0]["path"]).write_text("{}")
        with pytest.raises(DamageError, match="differs from its manifest"):
            outputs.read(output)
