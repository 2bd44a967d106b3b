"""Conversion of images that a user gives in Python into inputs that the library reads.

Arrays and PIL images become PNG, without loss, so that they are decoded by the same rule, and have
the same pixel hashes, as files of the same pixels.
"""

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from manifpt import storage
from manifpt.engine import pools, session
from manifpt.errors import ManifptError
from manifpt.images.decode import DecodeRule, to_rgb
from manifpt.images.patterns import is_pattern
from manifpt.images.raw import Raw, raw_images
from manifpt.images.read import read_raw
from manifpt.images.sources import PARQUET, TABLES, TARS, Input
from manifpt.images.units import units

if TYPE_CHECKING:
    import ray.data

# An array N x H x W x 3, or N x H x W if grey, uint8; the URI of a folder, tar, Parquet file, table
# or pattern; or a sequence whose items are arrays, PIL images, paths of files, or encoded bytes.
Images: TypeAlias = (
    np.ndarray
    | str
    | os.PathLike[str]
    | Sequence[np.ndarray | Image.Image | str | os.PathLike[str] | bytes]
)
KINDS = "give a uint8 array N x H x W x 3, PIL images, bytes, paths, or a folder"
COLUMN, BATCH = "image", 256  # of datasets
# Files of more bytes are processed by Ray.
HERE_BYTES = 2**28


@dataclass(frozen=True)
class Given:
    """Images: the ``inputs`` that jobs can read, or else ``items``, one an image."""

    inputs: tuple[str, ...] = ()
    items: Sequence[Any] = field(default=(), repr=False)

    @classmethod
    def of(cls, images: Any) -> "Given":
        """Take images of any kind; raise if the kind is not supported."""
        if isinstance(images, str | os.PathLike):
            return cls((os.fspath(images),))
        if isinstance(images, np.ndarray):
            return cls(items=_stack(images))
        if isinstance(images, Image.Image | bytes) or not isinstance(images, Sequence):
            raise ManifptError(f"images: {_named(images)} is no kind of images; {KINDS}")
        if not len(images):
            raise ManifptError(f"images: there are none; {KINDS}")
        paths = [os.fspath(i) for i in images if isinstance(i, str | os.PathLike)]
        if len(paths) == len(images) and not all(map(_is_file, paths)):
            return cls(tuple(paths))
        for item in images:
            _check(item)
        return cls(items=images)

    def raws(self, rule: DecodeRule) -> Iterator[Raw]:
        """Yield the undecoded images, in order."""
        if not self.inputs:
            yield from (_raw(str(n), item) for n, item in enumerate(self.items))
            return
        for unit in units(self.inputs, quiet=True):
            yield from raw_images(unit, rule)

    def tables(self, rule: DecodeRule, other_sizes: Sequence[int] = ()) -> Iterator[pa.Table]:
        """Yield the images table in chunks, the rows that could not be decoded included."""
        return read_raw(self.raws(rule), rule, None, other_sizes)

    def stored(self, place: Path) -> str:
        """Return a URI that jobs can read; images in memory are written there, as Parquet."""
        if len(self.inputs) == 1:
            return self.inputs[0]
        if self.inputs:
            raise ManifptError("images: give one folder or pattern, or a list of image files")
        path = place.with_suffix(".parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        raws = [_raw(str(n), item) for n, item in enumerate(self.items)]
        data = pa.array([raw.data for raw in raws], pa.large_binary())
        table = pa.table({"id": [str(n) for n in range(len(raws))], COLUMN: data})
        storage.write_bytes(str(path), storage.parquet_bytes(table))
        return str(path)


def decoded(given: Given, rule: DecodeRule, other_sizes: Sequence[int] = ()) -> Iterator[pa.Table]:
    """Yield the images table in chunks; raise for an image that can't be decoded."""
    for table in given.tables(rule, other_sizes):
        broken = table.filter(pc.is_valid(table["error"]))
        if broken.num_rows:
            row = broken.slice(0, 1).to_pylist()[0]
            raise ManifptError(
                f"images: {row['uri'] or row['id']} can't be decoded ({row['error']}: "
                f"{row['message']}); leave it out"
            )
        yield table.drop_columns(["error", "message"])


def inputs_of(images: Any, folder: str) -> list[str]:
    """Return the ``--input`` of jobs: a URI, or NAME=URI for each source of a mapping.

    Images in memory are written under ``folder``.
    """
    if not isinstance(images, Mapping):
        given = Given.of(images)
        return list(given.inputs) or [given.stored(Path(folder) / "images")]
    found = []
    for name, some in images.items():
        text = f"{name}={Given.of(some).stored(Path(folder) / str(name))}"
        if Input.parse(text).source != name:
            raise ManifptError(f"images: {name!r} is no name of a source; use letters and digits")
        found.append(text)
    if not found:
        raise ManifptError("images: no source is given; give {name: images, ...}")
    return found


def demand_of(inputs: Sequence[str], folder: str) -> pools.Demand:
    """Return the resources for the result of ``inputs_of``: this process alone if it is small."""
    if sum(unit.bytes for unit in units(inputs, quiet=True)) <= HERE_BYTES:
        return pools.HERE
    return on_ray(inputs, folder)


def on_ray(inputs: Sequence[str], folder: str) -> pools.Demand:
    """Start Ray if none runs; raise if its nodes can't read images that were in memory."""
    session.start()
    if session.nodes() > 1 and any(folder in text for text in inputs):
        raise ManifptError(
            "images: are in this machine's memory, and Ray has several nodes; write them where all "
            "nodes can read, and give the URI"
        )
    return pools.ANY


def is_dataset(images: Any) -> bool:
    """Tell whether images are a dataset of Ray Data, without importing Ray."""
    data = sys.modules.get("ray.data")
    return data is not None and isinstance(images, data.Dataset)


def mapped(dataset: "ray.data.Dataset", function: type, *arguments: Any) -> "ray.data.Dataset":
    """Return a dataset mapped by a class that is built once a process and takes ``image``."""
    import ray.data

    session.start()
    pool = pools.pool(pools.ANY, uses_gpu=True)
    return dataset.map_batches(
        function,
        fn_constructor_args=arguments,
        batch_size=BATCH,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool.size),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
    )


def of_batch(batch: Mapping[str, np.ndarray]) -> tuple[Given, dict[str, np.ndarray]]:
    """Return the images of a batch of a dataset, and its other columns."""
    if COLUMN not in batch:
        raise ManifptError(f"images: the dataset has no column {COLUMN!r}; rename the one it has")
    rest = {name: values for name, values in batch.items() if name != COLUMN}
    return Given.of(list(batch[COLUMN])), rest


def _named(value: object) -> str:
    return type(value).__name__


def _is_file(path: str) -> bool:
    """Tell whether a path is one image, not a container of many."""
    holds_many = path.endswith((*TARS, *PARQUET, *TABLES)) or is_pattern(path)
    return not holds_many and os.path.isfile(path)


def _stack(images: np.ndarray) -> Sequence[np.ndarray]:
    """Return the images of an array, H x W x channels or H x W."""
    if images.ndim not in {3, 4} or (images.ndim == 3 and images.shape[2] in {1, 3, 4}):
        shape = " x ".join(map(str, images.shape))
        raise ManifptError(
            f"images: an array of {shape}; give N x H x W x 3, or N x H x W if grey (a single "
            "image is image[None])"
        )
    if not len(images):
        raise ManifptError(f"images: there are none; {KINDS}")
    _check(images[0])
    return list(images)


def _check(item: object) -> None:
    """Raise unless an item is an image."""
    if isinstance(item, Image.Image | bytes | str | os.PathLike):
        return
    if not isinstance(item, np.ndarray):
        raise ManifptError(f"images: {_named(item)} is no kind of image; {KINDS}")
    if item.dtype != np.uint8:
        raise ManifptError(f"images: numbers are {item.dtype}; give uint8, from 0 to 255")
    if item.ndim not in {2, 3} or (item.ndim == 3 and item.shape[2] not in {1, 3, 4}):
        shape = " x ".join(map(str, item.shape))
        raise ManifptError(f"images: an image of {shape}; give H x W x 3, or H x W if grey")


def _raw(name: str, item: Any) -> Raw:
    """Return an item as an undecoded image."""
    if isinstance(item, str | os.PathLike):
        uri = storage.absolute(os.fspath(item))
        return Raw(os.fspath(item), uri, storage.read_bytes(uri))
    if isinstance(item, bytes):
        return Raw(name, "", item)
    if isinstance(item, np.ndarray):
        flat = item[..., 0] if item.ndim == 3 and item.shape[2] == 1 else item
        item = Image.fromarray(np.ascontiguousarray(flat))
    try:
        return Raw(name, "", _png(item))
    except OSError as error:  # Pillow reads the file only now
        return Raw(name, "", None, error="corrupt", message=str(error).splitlines()[0][:200])


def _png(image: Image.Image) -> bytes:
    """Return an image as PNG with the pixels that decoding its file would give."""
    sink = io.BytesIO()
    to_rgb(ImageOps.exif_transpose(image)).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
