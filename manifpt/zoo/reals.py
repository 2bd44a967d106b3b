"""Real images for generators, all in memory: from any image source, IDX files, or torchvision."""

import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, plan, read_unit
from manifpt.images.probe import natural_size
from manifpt.images.read import pixels_of
from manifpt.spaces.space import LARGEST

IDX = ("idx3-ubyte", "idx3-ubyte.gz")
IDX_IMAGES, IDX_LABELS = 0x00000803, 0x00000801
TORCHVISION = "torchvision:"
DATASETS = ("FashionMNIST", "MNIST", "CIFAR10", "CelebA")


@dataclass(frozen=True)
class Reals:
    """Images, N x size x size x C uint8, and their classes if the source has them."""

    images: np.ndarray
    labels: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Reals":
        """Return the reals of some rows."""
        return Reals(self.images[rows], None if self.labels is None else self.labels[rows])

    def subset(self, data: dict[str, Any], seed: int) -> "Reals":
        """Return a recipe's training images; ``data`` may have ``classes``, ``domain``, ``images``.

        ``classes`` are numbers of classes, ``domain`` is the URI of other reals to take in place of
        these, ``images`` the number that is drawn.
        """
        chosen = self
        if "domain" in data:
            _, size, _, channels = self.images.shape
            chosen = Reals(normalised([data["domain"]], size, channels)[0])
        if "classes" in data:
            if chosen.labels is None:
                raise ManifptError("recipe: data.classes needs reals with classes, as IDX files")
            chosen = chosen.take(np.flatnonzero(np.isin(chosen.labels, data["classes"])))
        if "images" in data:
            order = np.random.default_rng(seed).permutation(len(chosen.images))
            chosen = chosen.take(np.sort(order[: data["images"]]))
        return chosen


def read_idx(uri: str, magic: int) -> np.ndarray:
    """Return the array of an IDX file, uint8 (format: LeCun's MNIST page)."""
    data = storage.read_bytes(uri)
    if uri.endswith(".gz"):
        data = gzip.decompress(data)
    dimensions = 3 if magic == IDX_IMAGES else 1
    found, *shape = np.frombuffer(data, ">u4", 1 + dimensions).tolist()
    if found != magic:
        raise ManifptError(f"{uri}: not an IDX file of {dimensions} dimensions; check the path")
    return np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)


def _idx_reals(uri: str) -> Reals:
    images = read_idx(uri, IDX_IMAGES)[..., None]
    beside = uri.replace("images-idx3", "labels-idx1")
    known = beside != uri and storage.exists(beside)
    return Reals(images, read_idx(beside, IDX_LABELS) if known else None)


def _torchvision_reals(name: str, size: int | None) -> Reals:
    """Return a dataset's training images; torchvision downloads them once, to its usual cache."""
    if name not in DATASETS:
        raise ManifptError(f"--real {TORCHVISION}{name}: choose one of {', '.join(DATASETS)}")
    import torch
    import torchvision

    split = {"split": "train"} if name == "CelebA" else {"train": True}
    root = Path(torch.hub.get_dir()) / "datasets"
    try:
        dataset = getattr(torchvision.datasets, name)(root, download=True, **split)
    except Exception as error:  # torchvision raises the errors of its mirror's client
        reason = str(error).splitlines()[0][:150]
        raise ManifptError(
            f"--real {TORCHVISION}{name}: {reason}; offline, give a local folder, tar or IDX file"
        ) from None
    if name == "CelebA":
        return Reals(normalised([str(root / "celeba" / "img_align_celeba")], size or 64, 3)[0])
    images = np.asarray(dataset.data)
    return Reals(images[..., None] if images.ndim == 3 else images, np.asarray(dataset.targets))


def normalised(
    inputs: Sequence[str], size: int | None, channels: int | None
) -> tuple[np.ndarray, dict[str, int]]:
    """Return images by the one decode rule, N x size x size x C uint8, and their formats.

    ``channels`` is 1 if every image is grey, unless it is given. The images are counted by format
    and size, since a format or size of its own reveals a class.
    """
    units = plan(inputs, source="real")
    rule = DecodeRule(size or min(LARGEST, natural_size(units, Selection())))
    tables = [table for unit in units for table in read_unit(unit, rule)]
    kept = [table.filter(np.array(table["error"].is_null())) for table in tables]
    came_as = Counter(
        f"{row['format']} {row['width']} x {row['height']}"
        for table in kept
        for row in table.select(["format", "width", "height"]).to_pylist()
    )
    images = np.concatenate([pixels_of(table) for table in kept if table.num_rows])
    grey = (images == images[..., :1]).all() if channels is None else channels == 1
    if not grey:
        return images, dict(came_as)
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma, as Pillow's mode L
    return (images @ weights).round().astype(np.uint8)[..., None], dict(came_as)


def read_reals(inputs: Sequence[str], size: int | None) -> Reals:
    """Return all real images; their classes if they are IDX files or torchvision's datasets."""
    if inputs[0].startswith(TORCHVISION):
        return _torchvision_reals(inputs[0].removeprefix(TORCHVISION), size)
    if not all(uri.endswith(IDX) for uri in inputs):
        return Reals(normalised(inputs, size, None)[0])
    parts = [_idx_reals(storage.absolute(uri)) for uri in inputs]
    labels = [part.labels for part in parts if part.labels is not None]
    return Reals(
        np.concatenate([part.images for part in parts]),
        np.concatenate(labels) if len(labels) == len(parts) else None,
    )
