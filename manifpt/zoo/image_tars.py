"""Images as WebDataset tars: one encoder for every class, so that equal images are equal bytes."""

import gzip
import io
import tarfile

import numpy as np
from PIL import Image

from manifpt import storage
from manifpt.zoo.card_format import TarEntry

ENCODER = "PNG, optimised, by Pillow; mode L if grey, else RGB"


def encode_png(image: np.ndarray) -> bytes:
    """Encode H x W x C uint8 pixels, C = 1 or 3: the one encoder of all classes."""
    sink = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
        sink, "PNG", optimize=True
    )
    return sink.getvalue()


def tar_of(images: np.ndarray) -> bytes:
    """Return a WebDataset tar, gzipped, of numbered PNG; equal images give equal bytes."""
    sink = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=sink, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, image in enumerate(images):
            data = encode_png(image)
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def write_tar(output: str, source: str, split: str, images: np.ndarray) -> TarEntry:
    """Write one split of one source under ``output``; return its entry for the card."""
    path = f"{source}/{split}.tar.gz"
    written = storage.write_bytes(storage.join(output, path), tar_of(images))
    return {"path": path, "source": source, "split": split, "images": len(images), **written}
