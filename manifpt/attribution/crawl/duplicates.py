"""Exact and near copies among the images of a corpus; near ones are found by perceptual hashes.

Copies can be found only after all parts of the attributions are written. They are therefore listed
in a table of their own, ``duplicates/``: writing all parts again would double the cost. Nothing is
dropped. "First" is by the order of the input, which never changes.

    duplicate_of       the first image of the same bytes or pixels, if it is another
    near_duplicate_of  the first image whose perceptual hash is within ``near_distance`` bits, among
                       those that are no duplicates; a duplicate's is that of its first

It is not transitive: a near duplicate of a near duplicate may lie further off.

A chain of shuffles, see ``engine.shuffle``; each step is a method of ``_Corpus``, named by what it
writes, and takes a run of the input or a partition:

    pixels   of a run         -> by pixel hash: the first image of each hash in the run
    looks    by pixel hash    -> by look: the first images of all, one of each look
    bands    by look          -> by the bits of a mask: the looks, each where it comes first
    near     by mask and bits -> by look: the earliest look near each
    answers  by look          -> by pixel hash: the earliest image near each
    flags    by pixel hash    -> by run: images that are copies of others
    wanted   the same         -> by run: the images that they are copies of
    names    of a run         -> by run: ids of those
    a file of the table for each run

Copies of one image, such as a million of a blank image, would gather in one partition. They are
reduced first, where they are: to one image a run, and one image of a look in each partition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifpt import storage
from manifpt.attribution.crawl.alike import NONE, PixelGroups, earliest, first_alike, numbers_of
from manifpt.engine import shuffle
from manifpt.engine.shuffle import Each, Scratch, mixed
from manifpt.images.perceptual import covers, earlier
from manifpt.outputs.formats import DuplicatesEntry, PartEntry

FOLDER = "duplicates"
RUN_ROWS = 2**20

READ = pa.schema(
    {
        "id": pa.string(),
        "sha256": pa.string(),
        "pixel_sha256": pa.string(),
        "perceptual_hash": pa.uint64(),
    }
)
DUPLICATES = {
    "id": pa.string(),
    "sha256": pa.string(),
    "duplicate_of": pa.string(),
    "same": pa.string(),
    "near_duplicate_of": pa.string(),
    "distance": pa.int32(),
}


def find_duplicates(
    output: str,
    files: Sequence[PartEntry],
    distance: int,
    each: Each = shuffle.call_here,
    generation: str = "",
) -> list[DuplicatesEntry]:
    """Write the table of the duplicates among the attributions; return its entries in a manifest.

    ``files`` are the pipeline's parts, in order; ``generation`` is in the names. There is one file
    for each run of RUN_ROWS images, with its counts of ``exact`` and ``near`` copies.
    """
    parts = [file for file in files if file["folder"] == "attributions"]
    runs = [[file["path"] for file in run] for run in shuffle.runs(parts, RUN_ROWS)]
    ends = np.cumsum([0, *(sum(f["rows"] for f in run) for run in shuffle.runs(parts, RUN_ROWS))])
    rows, count = int(ends[-1]), shuffle.partitions(int(ends[-1]))
    masks = covers(distance, rows)
    listed = [[file["path"], file.get("sha256")] for file in parts]
    scratch = Scratch.of(output, "duplicates", listed, [len(runs), count, distance, masks])
    corpus = _Corpus(scratch, runs or [[]], ends[:-1] if runs else ends, count, masks, distance)
    entries = corpus.written(each, generation)
    scratch.clear()
    return entries


@dataclass(frozen=True)
class _Corpus:
    """The attributions of an output: runs of files, each from a position on, and the partitions."""

    scratch: Scratch
    runs: Sequence[Sequence[str]]
    starts: np.ndarray
    partitions: int
    masks: Sequence[int]
    distance: int

    def written(self, each: Each, generation: str) -> list[DuplicatesEntry]:
        """Take all steps; return the entries of the table's files."""
        bands = len(self.masks) * self.partitions
        steps: list[tuple[str, Callable[[int], None], int]] = [
            ("pixels", self.pixels, len(self.runs)),
            ("looks", self.looks, self.partitions),
            ("bands", self.bands, bands),
            ("near", self.near, bands),
            ("answers", self.answers, self.partitions),
            ("flags", self.flags, self.partitions),
            ("names", self.names, len(self.runs)),
        ]
        for stage, step, count in steps:
            self.scratch.run(each, stage, step, count)
        return list(each(self.table, [(run, generation) for run in range(len(self.runs))]))

    def _read(self, run: int, columns: Sequence[str]) -> pa.Table:
        uris = [storage.join(self.scratch.output, path) for path in self.runs[run]]
        tables = [READ.empty_table(), *(storage.read_parquet(uri, columns) for uri in uris)]
        return pa.concat_tables([table.select(columns) for table in tables])

    def _run_of(self, positions: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, positions, "right") - 1

    def _gather(self, stage: str, partition: int, files: int | None = None) -> pa.Table:
        return self.scratch.gather(stage, range(files or self.partitions), partition)

    def pixels(self, run: int) -> None:
        """Write the first image of each pixel hash in a run."""
        table = self._read(run, ["pixel_sha256", "perceptual_hash"])
        numbers = numbers_of(table["pixel_sha256"])
        rows = np.flatnonzero(first_alike(numbers) == np.arange(len(numbers)))
        made = pa.table(
            {
                "position": self.starts[run] + rows,
                "high": numbers[rows, 0],
                "low": numbers[rows, 1],
                "look": table["perceptual_hash"].take(pa.array(rows)),
            }
        )
        places = mixed(numbers[rows, 0], self.partitions)
        self.scratch.write("pixels", run, made, places, self.partitions)

    def looks(self, partition: int) -> None:
        """Write the first image of each look among images that are no copies."""
        images = PixelGroups.of(self._gather("pixels", partition, len(self.runs)))
        rows = np.unique(images.alike)
        looks = images.look[rows]
        origin = np.full(len(rows), partition, np.int32)
        made = pa.table({"look": looks, "position": images.position[rows], "origin": origin})
        self.scratch.write("looks", partition, made, mixed(looks, self.partitions), self.partitions)

    def bands(self, number: int) -> None:
        """Write the looks of a partition, and where each comes first, by their bits in a mask."""
        mask, partition = divmod(number, self.partitions)
        looks, first, _ = earliest(self._gather("looks", partition))
        places = mixed(looks & np.uint64(self.masks[mask]), self.partitions)
        made = pa.table({"look": looks, "position": first})
        self.scratch.write("bands", number, made, places, self.partitions)

    def near(self, number: int) -> None:
        """Write the earliest look near each, for a mask and a partition of its bits."""
        mask, partition = divmod(number, self.partitions)
        files = range(mask * self.partitions, (mask + 1) * self.partitions)
        table = self.scratch.gather("bands", files, partition)
        looks, positions = table["look"].to_numpy(), table["position"].to_numpy()
        rows, near, bits = earlier(looks, positions, self.masks[mask], self.distance)
        made = pa.table({"look": looks[rows], "near": near, "bits": bits})
        places = mixed(looks[rows], self.partitions)
        self.scratch.write("near", number, made, places, self.partitions)

    def answers(self, partition: int) -> None:
        """Write the earliest image near each image that ``looks`` wrote, if it is another."""
        asked = self._gather("looks", partition)
        found = self._gather("near", partition, len(self.masks) * self.partitions)
        looks, best, place = earliest(asked)
        apart = np.zeros(len(best), np.int32)
        order = np.argsort(-found["near"].to_numpy(), kind="stable")  # the earliest is set last
        near, bits = found["near"].to_numpy()[order], found["bits"].to_numpy()[order]
        rows = np.searchsorted(looks, found["look"].to_numpy()[order])
        best[rows], apart[rows] = near, bits
        position = asked["position"].to_numpy()
        made = pa.table({"position": position, "near": best[place], "bits": apart[place]})
        other = np.flatnonzero(best[place] != position)
        places = asked["origin"].to_numpy()[other].astype(np.int64)
        made = made.take(pa.array(other))
        self.scratch.write("answers", partition, made, places, self.partitions)

    def flags(self, partition: int) -> None:
        """Write the images that are copies of others, and which others these are."""
        images = PixelGroups.of(self._gather("pixels", partition, len(self.runs)))
        near, bits = images.near(self._gather("answers", partition))
        own = images.first == np.arange(len(images.first))
        exact = np.where(own, NONE, images.position[images.first])
        rows = np.flatnonzero(np.minimum(exact, near) < NONE)
        position = images.position[rows]
        columns = {"position": position, "exact": exact[rows], "near": near[rows]}
        made, askers = pa.table(columns | {"bits": bits[rows]}), self._run_of(position)
        pairs = np.stack([np.tile(askers, 2), np.concatenate([exact[rows], near[rows]])], 1)
        pairs = np.unique(pairs[pairs[:, 1] < NONE], axis=0)
        wanted = pa.table({"asker": pairs[:, 0], "position": pairs[:, 1]})
        count = len(self.runs)
        self.scratch.write("wanted", partition, wanted, self._run_of(pairs[:, 1]), count)
        self.scratch.write("flags", partition, made, askers, count)

    def names(self, run: int) -> None:
        """Write ids and hashes of the images of a run that are wanted."""
        wanted = self._gather("wanted", run)
        rows = wanted["position"].to_numpy() - self.starts[run]
        made = self._read(run, ["id", "sha256"]).take(pa.array(rows))
        made = made.append_column("position", wanted["position"])
        self.scratch.write("names", run, made, wanted["asker"].to_numpy(), len(self.runs))

    def table(self, run: int, generation: str) -> DuplicatesEntry:
        """Write the copies in a run as a file of the table; return its entry."""
        rows = self._read(run, ["id", "sha256", "pixel_sha256"])
        exact, near, bits = self._copies(run, first_alike(numbers_of(rows["pixel_sha256"])))
        some = np.flatnonzero(np.minimum(exact, near) < NONE)
        of = self._names(run, rows)
        mine, copied, alike = rows.take(pa.array(some)), of(exact[some]), of(near[some])
        same = pc.equal(copied["sha256"].fill_null(""), mine["sha256"].fill_null(""))
        columns = [
            mine["id"],
            mine["sha256"],
            copied["id"],
            pc.if_else(copied["id"].is_valid(), pc.if_else(same, "bytes", "pixels"), None),
            alike["id"],
            pa.array(bits[some], mask=near[some] == NONE),
        ]
        made = pa.table(columns, schema=pa.schema(DUPLICATES.items())).combine_chunks()
        path = f"{FOLDER}/{run:06d}{generation}.parquet"
        uri = storage.join(self.scratch.output, path)
        written = storage.write_bytes(uri, storage.parquet_bytes(made))
        return {
            "path": path,
            "folder": FOLDER,
            "rows": made.num_rows,
            "exact": int((exact < NONE).sum()),
            "near": int((near < NONE).sum()),
            **written,
        }

    def _copies(self, run: int, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for all images of a run their exact and near originals, and the bits."""
        flags, start = self._gather("flags", run), self.starts[run]
        exact, near = np.full(len(first), NONE), np.full(len(first), NONE)
        bits = np.zeros(len(first), np.int32)
        rows = flags["position"].to_numpy() - start
        for name, column in (("exact", exact), ("near", near), ("bits", bits)):
            column[rows] = flags[name].to_numpy()
        again = (first != np.arange(len(first))) & (exact[first] == NONE)
        return np.where(again, start + first, exact[first]), near[first], bits[first]

    def _names(self, run: int, rows: pa.Table) -> Callable[[np.ndarray], pa.Table]:
        """Return a function from positions to id and sha256, of a run's and its wanted rows."""
        own = pa.array(self.starts[run] + np.arange(rows.num_rows))
        mine = rows.select(["id", "sha256"]).append_column("position", own)
        known = pa.concat_tables([self._gather("names", run, len(self.runs)), mine])
        place = known["position"].to_numpy()
        order = np.argsort(place, kind="stable")
        order = np.append(order, 0)  # for NONE, which lies behind all

        def of(positions: np.ndarray) -> pa.Table:
            found = order[np.searchsorted(place, positions, sorter=order[:-1])]
            return known.take(pa.array(found, mask=positions == NONE))

        return of
