"""Times of chunks -> the number of rows that a run finished in each part of its wall time.

Each record of a chunk says when its run began, when its last part was written, and how many seconds
the work on it took. The rows of a chunk are spread evenly over these seconds.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict

import numpy as np

MOST_BINS = 200
LEAST_SECONDS = 1.0  # of a bin, except for a shorter run
TIMES = ("started", "seconds", "written", "rows_in")


class RowsOverTime(TypedDict):
    """The ``rows`` finished in each bin of a job's working time; they add up to all of its rows.

    A job that was stopped and continued has several ``starts``, in seconds from its beginning; the
    time between the last chunk of a start and the next start is left out.
    """

    seconds_per_bin: float
    rows: list[int]
    starts: list[float]


def rows_over_time(records: Iterable[Mapping[str, Any]]) -> RowsOverTime | None:
    """Return the rows finished in each of at most MOST_BINS equal parts of a job's working time.

    None if there are no rows, or if a record was written by a version that noted no times.

    >>> one = {"started": 100.0, "seconds": 2.0, "written": 104.0, "rows_in": 6}
    >>> two = {"started": 900.0, "seconds": 1.0, "written": 901.0, "rows_in": 5}
    >>> rows_over_time([one, two])
    {'seconds_per_bin': 1.0, 'rows': [0, 0, 3, 3, 5], 'starts': [0.0, 4.0]}
    """
    found: np.ndarray = np.fromiter(_times(records), np.dtype((np.float64, len(TIMES))))
    started, seconds, written, rows = found.reshape(-1, len(TIMES)).T
    if np.isnan(found).any() or rows.sum() == 0:
        return None
    begins, run = np.unique(started, return_inverse=True)
    ends = np.maximum(begins, _greatest(written, run))
    offsets = np.cumsum([0.0, *(ends - begins)])
    total = max(float(offsets[-1]), 1e-3)
    # Clocks of nodes may differ from that of the driver: no chunk is worked on before its start.
    last = np.maximum(written - begins[run], 0.0)
    first = np.minimum(np.clip(last - seconds, 0.0, None), last - 1e-6)
    edges = np.linspace(0, total, max(1, min(MOST_BINS, int(total / LEAST_SECONDS))) + 1)
    done = [_done(edge, first + offsets[run], last + offsets[run], rows) for edge in edges[1:-1]]
    counts = np.diff(np.rint([0.0, *done, rows.sum()]).astype(np.int64))
    return {
        "seconds_per_bin": total / (len(edges) - 1),
        "rows": counts.tolist(),
        "starts": offsets[:-1][:MOST_BINS].tolist(),
    }


def _times(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, ...]]:
    for record in records:
        yield tuple(record.get(name, np.nan) for name in TIMES)


def _greatest(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the greatest value of each group, whose numbers begin at zero."""
    found: np.ndarray = np.full(group.max() + 1, -np.inf)
    np.maximum.at(found, group, values)
    return found


def _done(edge: float, first: np.ndarray, last: np.ndarray, rows: np.ndarray) -> float:
    """Return the rows that are finished at a time, of chunks worked on from first to last."""
    return float(rows @ np.clip((edge - first) / (last - first), 0.0, 1.0))
