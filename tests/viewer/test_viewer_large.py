"""A million rows: a page comes in seconds, and memory does not grow with the table."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from handmade_outputs import published
from starlette.testclient import TestClient

from manifpt.attribution.crawl.leaks import LEAKS
from manifpt.attribution.crawl.stage import ATTRIBUTIONS
from manifpt.attribution.unknown.decision import DECISIONS
from manifpt.viewer.output import CrawlOutput
from manifpt.viewer.web_server import application

PER_FILE = 100_000
# Alone on two cores a page takes a tenth of the time; the whole table takes twice the memory.
SECONDS, BYTES = 20, 128 * 2**20
ADDRESSES = (
    "/",
    "/rows",
    "/rows?order=strangest",
    "/rows?order=surest&decision=real&prediction=a",
    "/rows?probability_min=0.99999&count=1",
    "/rows?text=99999.png",
    "/row?at=5.50000",
    "/row?id=shard-00009/images/000099999.png",
)


def part(number: int) -> pa.Table:
    """Return a file of attributions."""
    rng = np.random.default_rng(number)
    ids = [f"shard-{number:05d}/images/{n:09d}.png" for n in range(PER_FILE)]
    known = {
        "id": ids,
        "uri": [f"https://example.org/{id}" for id in ids],
        "sha256": [f"{n:064x}" for n in rng.integers(0, 2**62, PER_FILE)],
        "prediction": rng.choice(["a", "b", "real"], PER_FILE),
        "decision": rng.choice(DECISIONS, PER_FILE),
    }
    known |= {n: rng.uniform(size=PER_FILE) for n in ("probability", "unknown_p", "unknown_score")}
    schema = ATTRIBUTIONS | dict.fromkeys(LEAKS, pa.bool_())
    made = {
        name: pa.array(known[name], kind) if name in known else pa.nulls(PER_FILE, kind)
        for name, kind in schema.items()
    }
    return pa.table(made)


def large(folder: Path, count: int) -> str:
    """Publish an output of ``count`` attributed images; a multiple of PER_FILE."""
    files = {f"attributions/{n:06d}-000000.parquet": part(n) for n in range(count // PER_FILE)}
    decisions = dict.fromkeys(DECISIONS, count // 4)
    summary = {"rows_in": count, "ok": count, "quarantined": 0, "by_error": {}, "manifolds": []}
    summary |= {"decisions": decisions, "predictions": {"a": decisions}, "model": "/model"}
    summary |= {"leaks": dict.fromkeys(LEAKS, 0), "inputs": {"given": ["s3://bucket"]}}
    place = str(folder / "verdicts")
    published(place, "attributions", summary, files, {"summary.json": summary})
    return place


def visited(place: str) -> list[tuple[str, int, float, int]]:
    """Ask for the pages of an output; return status, seconds and Arrow's peak memory of each."""
    client = TestClient(application(CrawlOutput.open(place)), base_url="http://127.0.0.1")
    found = []
    for address in ADDRESSES:
        start = time.monotonic()
        status = client.get(address).status_code
        found.append(
            (address, status, time.monotonic() - start, pa.default_memory_pool().max_memory())
        )
    return found


@pytest.mark.slow
def test_pages_of_a_million_rows_are_quick_and_take_little_memory(tmp_path):
    place = large(tmp_path, 1_000_000)
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # that has not made the table
        found = pool.apply(visited, (place,))
    for address, status, seconds, peak in found:
        print(f"{address}: {seconds:.2f} s, {peak / 2**20:.0f} MiB")
        assert status == 200
        assert seconds < SECONDS
        assert peak < BYTES
