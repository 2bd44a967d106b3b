"""Containers at random, whole and damaged: all end in rows, and no image is lost or read twice.

A case is made from its seed alone. The fast test has a limit in seconds; the slow one goes on for
``MANIFPT_FUZZ_SECONDS``, an hour if that is not set.
"""

import contextlib
import csv
import io
import itertools
import json
import os
import random
import shutil
import tarfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from manifpt.images import DecodeRule
from manifpt.images.listing import hidden
from manifpt.images.raw import SIDECARS, raw_images
from manifpt.images.sources import Reading
from manifpt.images.units import units

pytestmark = pytest.mark.long

RULE = DecodeRule(16)
FAST_SECONDS = {"local": 8, "s3": 8}
# Names that meet, and names with all that ids escape.
NAMES = (
    "a b x.png x.jpg a.tar a.tgz a~ a~2 a%7E a.b.c.png é.png %41 _DSC1.JPG .hidden _work".split()
)
ODD = [*NAMES, "\udcff.png", "a\\udcff.png", " ", "n\n", "~broken.png", "x.", "card.json"]
TEXT = ["plain", "a, b", '5" wide', "", "ü", "two\nlines", 'say "no"', "a\tb"]


@dataclass
class Case:
    """A folder of containers, and how often each image is to be found there."""

    random: random.Random
    folder: Path
    local: bool
    images: Counter = field(default_factory=Counter)
    tables: list[Path] = field(default_factory=list)
    made: int = 0

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def image(self) -> bytes:
        """Return the content of an image that no other has."""
        self.made += 1
        return b"image %d " % self.made + self.random.randbytes(
            self.random.choice([0, 9, 600, 3000])
        )

    def name(self) -> str:
        names = ODD if self.local else NAMES
        depth = self.random.choice([1, 1, 1, 2, 3])
        return "/".join(self.random.choice(names) for _ in range(depth))

    def place(self, *endings: str) -> Path | None:
        """Return where another file may lie, None if the name is taken."""
        path = self.folder / (self.name() + self.random.choice(endings))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            return None
        return None if os.path.lexists(path) else path

    def seen(self, path: Path) -> bool:
        return not hidden(str(path.relative_to(self.folder)))


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return bytes with some change of content or structure."""
    found, size = bytearray(data), max(1, len(data))
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, length = rng.randrange(size), rng.choice([1, 10, 512, 1024])
        kind = rng.choice("flip cut insert delete repeat zero move append".split())
        if kind == "flip":
            found[at : at + 1] = rng.randbytes(1)
        elif kind == "cut":
            del found[at:]
        elif kind == "insert":
            found[at:at] = rng.randbytes(length)
        elif kind == "delete":
            del found[at : at + length]
        elif kind == "append":
            found += rng.randbytes(length)
        else:
            block = at - at % 512
            one = found[block : block + 512]
            found[block : block + 512] = {"repeat": one * 2, "zero": bytes(512), "move": b""}[kind]
            found += one if kind == "move" else b""
    return bytes(found)


def add_file(case: Case) -> None:
    path = case.place(".png", "", ".jpg")
    if path is None:
        return
    kind = case.random.choice(["file"] * 6 + ["pipe", "link", "loop"] * case.local)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(case.folder / "nothing")
    elif kind == "loop":
        path.symlink_to(path.parent, target_is_directory=True)
    else:
        data = case.image()
        path.write_bytes(data)
        case.images[data] += case.seen(path) and not path.name.endswith((".tar", ".tgz"))


def add_tar(case: Case) -> None:
    path = case.place(".tar", ".tar.gz", ".tgz")
    if path is None:
        return
    sink, rng = io.BytesIO(), case.random
    form = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    packed = not path.name.endswith(".tar")
    with tarfile.open(fileobj=sink, mode="w:gz" if packed else "w", format=form) as tar:
        for _ in range(rng.randrange(12)):
            name = case.name() + rng.choice(["", ".png", ".json", ".tar.gz", "/" + "n" * 120])
            info = tarfile.TarInfo(name)
            data = b'{"source": "s"}' if name.endswith(".json") else case.image()
            if case.chance(0.1):
                info.type, info.linkname, data = tarfile.SYMTYPE, "x", b""
            info.size = len(data)
            with contextlib.suppress(ValueError):  # a name that the format can't hold
                tar.addfile(info, io.BytesIO(data))
    data = damaged(rng, sink.getvalue()) if case.chance(0.6) else sink.getvalue()
    path.write_bytes(data)
    if case.seen(path):
        case.images.update(images_of_tar(data))


def images_of_tar(data: bytes):
    """Yield the images that Python's own reader finds."""
    with contextlib.suppress(Exception), tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            plain = member.type in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
            safe = not member.name.startswith("/") and ".." not in member.name.split("/")
            ending = member.name.rpartition("/")[2].partition(".")[2].rpartition(".")[2]
            if plain and safe and member.sparse is None and ending.lower() not in SIDECARS:
                found = tar.extractfile(member).read()
                if found.startswith(b"image ") and len(found) == member.size:
                    yield found


def add_parquet(case: Case) -> None:
    path = case.place(".parquet")
    if path is None:
        return
    data = [case.image() for _ in range(case.random.randrange(1, 9))]
    keys = [case.name().encode(errors="ignore").decode() for _ in data]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": data, "key": keys}), sink, row_group_size=3)
    whole = sink.getvalue()
    bad = case.local and case.chance(0.4)
    if bad:  # its pages, not what it says of itself
        pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        at = case.random.randrange(4, pages)
        whole = whole[:at] + case.random.randbytes(1) + whole[at + 1 :]
    path.write_bytes(whole)
    case.images.update(data if case.seen(path) and not bad else [])


def add_table(case: Case) -> None:
    """Write a table of files of its own; of a damaged one, lines that are whole must be read."""
    rng, number = case.random, len(case.tables)
    ending = rng.choice(["csv", "tsv", "jsonl"])
    path = case.folder.parent / "tables" / f"{number}.{ending}"
    rows = []
    for n in range(rng.randrange(1, 30)):
        file = path.parent / f"{number}-{n}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(case.image())
        rows.append((file.name, rng.choice(TEXT)))
    bad = case.chance(0.7)
    if bad or ending == "tsv":
        rows = [(url, " ".join(text.split())) for url, text in rows]
    lines = [line_of(row, ending) for row in rows]
    intact = [True] * len(rows)
    for n in rng.sample(range(len(rows)), min(len(rows) - 1, rng.randrange(1, 5)) if bad else 0):
        line, intact[n] = bytearray(lines[n]), False
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(line))
            line[at : at + rng.randrange(2)] = rng.choice(
                [b'"', b'"', b",", b"\0", b"\xff", b"\r", b"{"]
            )
        lines[n] = bytes(line)
    header = [] if ending == "jsonl" else [b"url,caption" if ending == "csv" else b"url\tcaption"]
    path.write_bytes(b"\n".join([*header, *lines]))
    case.tables.append(path)
    for (url, _), whole in zip(rows, intact, strict=True):
        case.images[(path.parent / url).read_bytes()] += whole


def line_of(row: tuple[str, str], ending: str) -> bytes:
    if ending == "jsonl":
        return json.dumps(dict(zip(("url", "caption"), row, strict=True))).encode()
    if ending == "tsv":
        return "\t".join(row).encode()
    sink = io.StringIO()
    csv.writer(sink, lineterminator="").writerow(row)
    return sink.getvalue().encode()


def rows_of(uri: str) -> list:
    with contextlib.redirect_stderr(io.StringIO()):
        found = list(units([uri], reading=Reading(columns=("caption",))))
        return [raw for unit in found for raw in raw_images(unit, RULE)]


def check(seed: int, folder: Path, bucket: str | None) -> None:
    """Make a case, read it, and compare."""
    case = Case(random.Random(seed), folder / "in", local=bucket is None)
    case.folder.mkdir(parents=True)
    (case.folder / "first.png").write_bytes(b"first")  # an input must hold something
    adders = [add_file, add_file, add_tar, add_tar, add_parquet, add_table]
    for _ in range(case.random.randrange(1, 12)):
        case.random.choice(adders)(case)
    places = [case.folder, *case.tables]
    uris = [str(place) for place in places]
    if bucket is not None:
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        target = bucket.removeprefix("s3://") + f"/fuzz/{seed}"
        files = [path for path in folder.rglob("*") if path.is_file()]
        fs.pipe({f"{target}/{path.relative_to(folder)}": path.read_bytes() for path in files})
        uris = [f"s3://{target}/{place.relative_to(folder)}" for place in places]
    rows = [rows_of(uri) for uri in uris]
    for some in rows:
        assert len({row.id for row in some}) == len(some), f"seed {seed}: {[r.id for r in some]}"
        assert all(row.id.encode() and row.uri.encode() for row in some), f"seed {seed}"
        assert all(row.data is not None or row.error for row in some), f"seed {seed}"
    found = Counter(row.data for some in rows for row in some)
    wrong = {
        data[:20]: (n, found[data]) for data, n in case.images.items() if n and found[data] != n
    }
    assert not wrong, f"seed {seed}: (expected, found) {wrong}"


def fuzz(first: int, seconds: float, folder: Path, bucket: str | None) -> int:
    stop = time.monotonic() + seconds
    for seed in itertools.count(first):
        if time.monotonic() > stop:
            return seed - first
        check(seed, folder / "case", bucket)
        shutil.rmtree(folder / "case")
    raise AssertionError


@pytest.mark.parametrize("where", FAST_SECONDS)
def test_every_container_ends_in_rows(where, request, tmp_path):
    bucket = request.getfixturevalue("s3") if where == "s3" else None
    assert fuzz(0, FAST_SECONDS[where], tmp_path, bucket) > 1


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("where", FAST_SECONDS)
def test_every_container_ends_in_rows_for_long(where, request, tmp_path):
    seconds = float(os.environ.get("MANIFPT_FUZZ_SECONDS", "3600")) / 2
    bucket = request.getfixturevalue("s3") if where == "s3" else None
    assert fuzz(10**6, seconds, tmp_path, bucket) > 1
