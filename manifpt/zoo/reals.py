"""Real images for generators, all in memory: from any image source, or MNIST's IDX files."""

import gzip
from collections.abc import Sequence

import numpy as np

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, plan, read_unit
from manifpt.images.probe import natural_size
from manifpt.images.read import pixels_of

IDX = ("idx3-ubyte", "idx3-ubyte.gz")
IDX_IMAGES = 0x00000803


def read_idx(uri: str) -> np.ndarray:
    """Return the grey images of an IDX file, N x H x W x 1 uint8 (format: LeCun's MNIST page)."""
    data = storage.read_bytes(uri)
    if uri.endswith(".gz"):
        data = gzip.decompress(data)
    magic, count, height, width = np.frombuffer(data, ">u4", 4).tolist()
    if magic != IDX_IMAGES:
        raise ManifptError(f"{uri}: not an IDX file of images; check the path")
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, height, width, 1)


def read_reals(inputs: Sequence[str], size: int | None) -> np.ndarray:
    """Return all real images, N x size x size x C uint8; C is 1 where every image is grey."""
    if all(uri.endswith(IDX) for uri in inputs):
        return np.concatenate([read_idx(storage.absolute(uri)) for uri in inputs])
    units = plan(inputs, source="real")
    rule = DecodeRule(size or natural_size(units, Selection()))
    tables = [table for unit in units for table in read_unit(unit, rule)]
    kept = [table.filter(np.array(table["error"].is_null())) for table in tables]
    images = np.concatenate([pixels_of(table) for table in kept if table.num_rows])
    grey = (images == images[..., :1]).all()
    return images[..., :1] if grey else images
