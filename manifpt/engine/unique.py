"""Whether the ids of a whole output are unique, found in bounded memory."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa

from manifpt import storage
from manifpt.errors import ManifptError

BUCKETS = 64
AT_ONCE = 16
SHOWN = 3


def check_ids(output: str, files: Sequence[dict[str, Any]]) -> None:
    """Raise if two rows of an output's parts have the same id, which ``images.ids`` rules out.

    Ids go by their 64-bit hash to buckets on disk, of which one at a time is sorted: memory is
    that of 1/64 of 8 bytes a row. Only where hashes meet are the ids themselves compared.
    """
    with ExitStack() as stack:
        buckets = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(BUCKETS)]
        for ids in _ids(output, files):
            _spread(_hashes(ids), buckets)
        met = [_repeated(bucket) for bucket in buckets]
    again = np.concatenate(met)
    if len(again):
        _raise_if_equal(output, files, again)


def _ids(output: str, files: Sequence[dict[str, Any]]) -> Iterator[pa.ChunkedArray]:
    uris = [storage.join(output, file["path"]) for file in files]
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for start in range(0, len(uris), AT_ONCE):
            yield from threads.map(_read_ids, uris[start : start + AT_ONCE])


def _read_ids(uri: str) -> pa.ChunkedArray:
    return storage.read_parquet(uri, columns=["id"])["id"]


def _hashes(ids: pa.ChunkedArray) -> np.ndarray:
    found: np.ndarray = pd.util.hash_array(ids.to_numpy(), categorize=False)
    return found


def _spread(hashes: np.ndarray, buckets: Sequence[IO[bytes]]) -> None:
    number = hashes % np.uint64(BUCKETS)
    for bucket in np.unique(number):
        buckets[int(bucket)].write(hashes[number == bucket].tobytes())


def _repeated(bucket: IO[bytes]) -> np.ndarray:
    bucket.seek(0)
    hashes = np.sort(np.frombuffer(bucket.read(), np.uint64))
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])


def _raise_if_equal(output: str, files: Sequence[dict[str, Any]], hashes: np.ndarray) -> None:
    seen: set[str] = set()
    twice: set[str] = set()
    for ids in _ids(output, files):
        for id_ in _of(ids, hashes):
            (twice if id_ in seen else seen).add(id_)
            if len(twice) == SHOWN:
                break
    if twice:
        raise ManifptError(
            f"--output {output}: these ids name several images: {', '.join(sorted(twice))}; please "
            "report it; inputs given apart, as NAME=URI, with another --output, may help"
        )


def _of(ids: pa.ChunkedArray, hashes: np.ndarray) -> Iterable[str]:
    found: list[str] = ids.filter(pa.array(np.isin(_hashes(ids), hashes))).to_pylist()
    return found
