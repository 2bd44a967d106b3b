"""Artifacts as input of trainings: datasets of Ray Data, their moments, and plain arrays."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from manifpt import storage
from manifpt.artifacts.artifact_stage import channel_moments, total_moments
from manifpt.artifacts.artifacts_format import ChannelMoments
from manifpt.artifacts.branches import (
    ArtifactBranch,
    artifact_column,
    of_classes,
    read_branches,
    row_counts,
)
from manifpt.attribution.model.discriminant import Rows
from manifpt.storage import tensors

if TYPE_CHECKING:
    import ray.data

SHUFFLE_BYTES = 256 * 2**20
IN_MEMORY_SHARE = 0.25
READ = ["id", "source", "artifact"]
# A larger validation set is sampled down to this many images, evenly over the classes.
MOST_ROWS = 20_000


@dataclass
class _ReadPart:
    """The artifacts of some images in each space -> arrays with labels, in a Ray Data task."""

    classes: list[str]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        table = pa.concat_tables([read_branches(list(uris), READ) for uris in batch["uris"]])
        table = of_classes(table, self.classes)
        labels = [self.classes.index(source) for source in table["source"].to_pylist()]
        names = [artifact_column(n) for n in range(len(batch["uris"][0]))]
        artifacts = {name: tensors.from_column(table[name]) for name in names}
        return {**artifacts, "label": np.array(labels, dtype=np.int64)}


def dataset(
    branches: Sequence[ArtifactBranch], split: str, classes: list[str]
) -> "ray.data.Dataset":
    """Return the rows of one split as a dataset; in memory if it is small, else streamed."""
    import ray.data

    # Files hold one source each; in this order the shuffle buffer meets all of them.
    files = sorted(branches[0].files(split), key=lambda f: hashlib.sha256(f.encode()).digest())
    items = [{"uris": [storage.join(branch.uri, path) for branch in branches]} for path in files]
    found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _ReadPart(classes), batch_size=1
    )
    counts = row_counts(branches[0].manifest)[split]
    size = sum(counts[name] for name in classes) * row_bytes(branches)
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    return found.materialize() if size < IN_MEMORY_SHARE * store else found


def row_bytes(branches: Sequence[ArtifactBranch]) -> int:
    """Return the bytes of an image's artifacts in all spaces, float32."""
    return 4 * sum(int(np.prod(branch.manifest["shape"])) for branch in branches)


@dataclass
class _Moments:
    """Arrays of some images -> the moments of each space's, in a Ray Data task."""

    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        found = [
            channel_moments(batch[artifact_column(n)].reshape(-1, *shape))
            for n, shape in enumerate(self.shapes)
        ]
        return {"moments": [json.dumps(found)]}


def moments(
    branches: Sequence[ArtifactBranch], classes: list[str], train: "ray.data.Dataset"
) -> list[ChannelMoments]:
    """Return the moments of each space's training artifacts: those of ``classes`` alone."""
    if len(classes) == len(branches[0].manifest["classes"]["train"]):
        return [branch.manifest["moments"]["train"] for branch in branches]
    shapes = tuple(tuple(branch.manifest["shape"]) for branch in branches)
    rows = train.map_batches(_Moments(shapes), batch_size=512).take_all()
    found = zip(*(json.loads(row["moments"]) for row in rows), strict=True)
    return [total_moments(list(one)) for one in found]


def artifact_rows(branch: ArtifactBranch, split: str, classes: list[str]) -> Iterator[Rows]:
    """Yield the artifacts in one space, N x shape, and the numbers of their classes, by file."""
    for path in branch.files(split):
        table = of_classes(read_branches([storage.join(branch.uri, path)], READ), classes)
        if table.num_rows:
            labels = [classes.index(source) for source in table["source"].to_pylist()]
            artifacts = tensors.from_column(table["artifact"])
            yield artifacts.reshape(-1, *branch.manifest["shape"]), np.array(labels, dtype=np.int64)


def first_rows(parts: Iterable[Rows], classes: int, most: int = MOST_ROWS) -> Rows:
    """Return the first rows of parts as one, of each class at most its share of ``most``."""
    room = np.full(classes, max(1, most // classes))
    kept: list[Rows] = []
    for rows, labels in parts:
        chosen = first_of(labels, room)
        kept.append((rows[chosen], labels[chosen]))
    found, numbers = zip(*kept, strict=True)
    return np.concatenate(found), np.concatenate(numbers)


def first_of(labels: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Return the places of the rows for whose class there is room, which they take."""
    kept = []
    for row, label in enumerate(labels):
        if room[label] > 0:
            room[label] -= 1
            kept.append(row)
    return np.array(kept, dtype=np.int64)
