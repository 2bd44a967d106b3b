"""Time and memory of the steps after the last image of an attribution: ids, copies, groups.

Rows are made from their number, without images: of every hundred, one is an exact copy of an
earlier one, and one is near another. The steps run one task after the other in one process, so its
peak of memory is that of the largest task.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifpt.attribution.crawl.duplicates import find_duplicates
from manifpt.attribution.crawl.grouping import write_groups
from manifpt.attribution.crawl.pooling import Pooling
from manifpt.engine.unique import check_ids
from manifpt.outputs.formats import PartEntry
from manifpt.storage import tensors
from manifpt.throughput.timing import Watch, in_a_process

PART_ROWS = 100_000
GROUP_IMAGES = 1000
CLASSES = ("real", "gan", "vae", "flow", "diffusion")
DISTANCE = 2


def _hex(keys: np.ndarray, salt: int) -> list[str]:
    """Return 64 hexadecimal digits for each key."""
    words = np.stack([_noise(keys * np.uint64(4) + np.uint64(i), salt) for i in range(4)], 1)
    text = words.tobytes().hex()
    return [text[start : start + 64] for start in range(0, len(text), 64)]


def _noise(keys: np.ndarray, salt: int) -> np.ndarray:
    """Return pseudo-random uint64 of keys, by the finaliser of splitmix64."""
    z = keys + np.uint64(0x9E3779B97F4A7C15 * (salt + 1) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: np.ndarray = z ^ (z >> np.uint64(31))
    return found


def synthetic_attributions(start: int, rows: int) -> pa.Table:
    """Return rows of attributions, from a position on, with the columns that the steps read."""
    number = np.arange(start, start + rows, dtype=np.uint64)
    copied = np.where(number % 100 == 7, number // 2, number)
    like = np.where(number % 100 == 8, number // 2, copied)
    looks = _noise(like, 1) ^ np.where(number % 100 == 8, np.uint64(1 << 40), np.uint64(0))
    ids = [f"crawl/{n // 10_000:06d}/{n % 10_000:09d}" for n in number.tolist()]
    hashes = _hex(copied, 2)
    names = ["id", "sha256", "pixel_sha256", "perceptual_hash"]
    return pa.table([pa.array(ids), hashes, hashes, looks], names)


def evidence(start: int, rows: int) -> pa.Table:
    """Return rows of evidence, from a position on."""
    number = np.arange(start, start + rows, dtype=np.uint64)
    given = np.stack([_noise(number, 3 + i) for i in range(len(CLASSES))], 1).astype(np.float64)
    probabilities = (given / given.sum(1, keepdims=True)).astype(np.float32)
    return pa.table(
        {
            "group": [f"site{n // GROUP_IMAGES}" for n in number.tolist()],
            "sha256": _hex(number, 2),
            "decision": ["generator"] * rows,
            "probabilities": tensors.to_column(probabilities),
        }
    )


def prepare(folder: str, rows: int) -> list[PartEntry]:
    """Write parts with that number of rows; return their entries, as a manifest has them."""
    files: list[PartEntry] = []
    for name, table in (("attributions", synthetic_attributions), ("evidence", evidence)):
        Path(folder, name).mkdir(parents=True)
        for start in range(0, rows, PART_ROWS):
            count = min(PART_ROWS, rows - start)
            path = f"{name}/{start // PART_ROWS:06d}-000000.parquet"
            pq.write_table(table(start, count), f"{folder}/{path}", compression="zstd")
            entry = PartEntry(path=path, folder=name, rows=count, bytes=0, sha256="")
            files.append(entry)
    return files


def _ids(folder: str, files: list[PartEntry]) -> int:
    rows = [file for file in files if file["folder"] == "attributions"]
    check_ids(folder, rows)
    return sum(file["rows"] for file in rows)


def _duplicates(folder: str, files: list[PartEntry]) -> int:
    return sum(entry["rows"] for entry in find_duplicates(folder, files, DISTANCE))


def _groups(folder: str, files: list[PartEntry]) -> int:
    pooling = Pooling(CLASSES, (1 / len(CLASSES),) * len(CLASSES))
    return write_groups(folder, files, pooling)[1]["groups"]


STEPS: dict[str, Callable[[str, list[PartEntry]], int]] = {
    "ids": _ids,
    "duplicates": _duplicates,
    "groups": _groups,
}


def _timed(step: str, folder: str, files: list[PartEntry]) -> tuple[float, float, int]:
    """Return the seconds of a step, those of the processor among them, and the rows it found."""
    wall, processor = time.monotonic(), time.process_time()
    found = STEPS[step](folder, files)
    return time.monotonic() - wall, time.process_time() - processor, found


class TailCost(TypedDict):
    """The time and the memory of one step after attribution, over a number of ``rows``."""

    step: str
    rows: int
    seconds: float
    processor_seconds: float
    peak_mb: float
    found: int


def measure(folder: str, rows: int) -> Iterator[TailCost]:
    """Yield a row for each step over that number of rows, each in a process of its own."""
    files = in_a_process("the making of rows", prepare, folder, rows)
    for step in STEPS:
        watches: list[Watch] = []

        def watch(process: int, watches: list[Watch] = watches) -> Watch:
            watches.append(Watch(process, {}))
            return watches[0]

        seconds, processor, found = in_a_process(step, _timed, step, folder, files, watch=watch)
        yield {
            "step": step,
            "rows": rows,
            "seconds": seconds,
            "processor_seconds": processor,
            "peak_mb": watches[0].peaks.get("driver", 0.0),
            "found": found,
        }


def table(rows: Sequence[TailCost]) -> str:
    """Return the rows of ``measure`` as text."""
    head = f"{'step':<12}{'rows':>12}{'seconds':>9}{'processor s':>13}{'peak MB':>9}{'found':>10}"
    lines = [
        f"{r['step']:<12}{r['rows']:>12}{r['seconds']:>9.1f}{r['processor_seconds']:>13.1f}"
        f"{r['peak_mb']:>9.0f}{r['found']:>10}"
        for r in rows
    ]
    return "\n".join([head, *lines])
