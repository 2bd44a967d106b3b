"""The properties of one image file, from its header, without its pixels.

Headers come from strangers. Pillow opens lazily only formats whose headers Python code reads; the
properties of others are reported by the sandboxed decoder. If a header can't be read, its
properties are null, and the row stays.
"""

import hashlib
import io
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, JpegImagePlugin

from manifpt.images.text import printable

# Properties of storage. If they separate the classes, a classifier may learn them alone.
CARRIED = {
    "format": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "mode": pa.string(),
    "bits": pa.int32(),
    "quality": pa.int32(),
    "tables": pa.string(),
    "subsampling": pa.string(),
    "encoder": pa.string(),
    "software": pa.string(),
    "exif": pa.bool_(),
    "icc": pa.string(),
    "xmp": pa.bool_(),
    "c2pa": pa.bool_(),
}
# Properties that depend on the picture, too, so that generators may differ in them without a fault
# of the data.
CONTENT = {"bytes": pa.int64(), "levels": pa.int32()}
PROPERTIES = CARRIED | CONTENT

LAZY = ("PNG", "JPEG", "MPO", "GIF", "BMP")
SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
_TEXT = 80  # characters of the name of the software in a file
_NAMES = 400  # characters of the names of its chunks or markers
# Markers of JPEG without a length.
_ALONE = {0x01, *range(0xD0, 0xD9)}
# Bytes of the Huffman tables of Annex K of ITU-T T.81, of grey and of colour images.
_STANDARD_HUFFMAN = {208, 416}
# Table K.1 of ITU-T T.81, the luminance of quality 50 in the scale of the Independent JPEG Group.
_LUMINANCE = np.array(
    """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80
    62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98
    112 100 103 99""".split(),
    int,
)


@lru_cache(maxsize=1)
def _table_sums() -> np.ndarray:
    """Return the sums of the luminance tables of the qualities 1 to 100."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((_LUMINANCE * scale[:, None] + 50) // 100, 1, 255)
    sums: np.ndarray = tables.sum(1)
    return sums


def jpeg_quality(luminance: list[int]) -> int:
    """Return the quality, 1 to 100, whose standard table has the sum nearest to this one's."""
    return int(np.abs(_table_sums() - sum(luminance)).argmin()) + 1


def properties(data: bytes) -> dict[str, object]:
    """Return the properties in the header of an image file: CARRIED, and ``bytes``.

    A property that the format does not have, or that could not be read, is null.
    """
    found: dict[str, object] = dict.fromkeys(PROPERTIES)
    found |= {"bytes": len(data), "c2pa": b"jumb" in data and b"c2pa" in data}
    found |= {"exif": False, "xmp": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=LAZY) as image:
                found |= _of_header(image, data)
    except Exception:  # it raises almost anything on hostile bytes
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found["encoder"] = printable(data[12:16].decode("latin-1"))  # lossy, lossless, extended
    return found


def _of_header(image: Image.Image, data: bytes) -> dict[str, object]:
    info, jpeg = image.info, image.format in {"JPEG", "MPO"}
    found: dict[str, object] = {
        "format": image.format,
        "width": image.width,
        "height": image.height,
        "mode": image.mode,
        "bits": 8,
        "exif": "exif" in info,
        "xmp": "xmp" in info or "XML:com.adobe.xmp" in info,
    }
    if profile := info.get("icc_profile"):
        found["icc"] = _digest(profile)
    software = info.get("Software") or info.get("software") or info.get("comment")
    if isinstance(software, bytes):
        software = software.decode("latin-1")
    if isinstance(software, str) and software:
        found["software"] = printable(software[:_TEXT])
    if jpeg:
        found |= _of_jpeg(image, data)
    elif image.format == "PNG":
        found |= {"bits": data[24], "encoder": _png_encoder(image, data)}
    return found


def _of_jpeg(image: Any, data: bytes) -> dict[str, object]:
    tables: dict[int, list[int]] = image.quantization
    grey = image.layers == 1
    names, huffman = _markers(data)
    hints = [
        f"jfif {image.info['jfif_density']}" if "jfif_density" in image.info else "",
        f"adobe {image.info.get('adobe_transform')}" if "adobe" in image.info else "",
        "standard tables" if huffman in _STANDARD_HUFFMAN else "optimised tables",
        names,
    ]
    return {
        "bits": image.bits,
        "quality": jpeg_quality(tables[min(tables)]) if tables else None,
        "tables": _digest(str(sorted((n, list(t)) for n, t in tables.items())).encode()),
        "subsampling": "grey" if grey else SUBSAMPLING.get(JpegImagePlugin.get_sampling(image)),
        "encoder": ", ".join(hint for hint in hints if hint)[:_NAMES],
    }


def _markers(data: bytes) -> tuple[str, int]:
    """Return the markers of a JPEG up to its first scan, and the bytes of its Huffman tables."""
    names, huffman, at = [], 0, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        names.append(f"{marker:02X}")
        huffman += length - 2 if marker == 0xC4 else 0
        if marker == 0xDA or length < 2:
            break
        at += 2 + length
    return " ".join(names), huffman


def _png_encoder(image: Any, data: bytes) -> str:
    """Return the chunks of a PNG up to its pixels, interlacing, and the header of its zlib stream.

    The second byte of that says which level of compression was asked for.
    """
    names, at = [], 8
    while at + 8 <= len(data):
        name = data[at + 4 : at + 8].decode("latin-1")
        names.append(name)
        if name == "IDAT":
            break
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    stream = data[at + 8 : at + 10].hex()
    hints = [" ".join(names), "interlaced" if image.info.get("interlace") else "", f"zlib {stream}"]
    return printable(", ".join(hint for hint in hints if hint)[:_NAMES])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def grey_levels(pixels: np.ndarray) -> int:
    """Return the number of the 256 values that an image uses, the most of its channels.

    ``pixels`` are H x W x 3 or tiles x H x W x 3 uint8, as they were stored: resizing makes new
    values.
    """
    channels = pixels.reshape(-1, pixels.shape[-1]).T
    return max(int(np.count_nonzero(np.bincount(one, minlength=256))) for one in channels)
