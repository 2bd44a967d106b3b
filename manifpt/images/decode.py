"""Bytes of any image format -> uint8 RGB of one size, by one rule for every image."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from manifpt.images.perceptual import thumbnail
from manifpt.images.tiles import Place, cut_tiles

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()

# By content, never by name. Left out: formats that run other programs or fetch files (EPS, WMF).
# HEIF (HEIC) needs the package pillow-heif.
Image.init()
FORMATS = [
    name
    for name in (
        "PNG JPEG JPEG2000 MPO WEBP AVIF HEIF GIF BMP DIB TIFF PPM TGA ICO ICNS PCX DCX SGI SUN "
        "XBM XPM DDS BLP MSP PSD QOI SPIDER IM FLI CUR FTEX PIXAR PCD"
    ).split()
    if name in Image.OPEN
]
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
}
PNG = b"\x89PNG\r\n\x1a\n"
ROWS = 256  # rows of a deep image that are converted at once
# If a resized image would have more pixels than this, only its centre is computed. Pillow then
# takes its two passes in another order, so values may differ where the filter overshoots.
MOST_RESIZED = 2**26

# Every code of a quarantine row, as docs/reference.md lists them.
ERRORS = {
    "empty": "the file has no bytes",
    "too_many_bytes": "the file is larger than the limit",
    "too_many_pixels": "the header announces more pixels than the limit",
    "unknown_format": "the content is no image format that is decoded",
    "truncated": "the file ends before the image does",
    "corrupt": "the decoder found the image broken",
    "too_slow": "the download or the decoding took longer than its limit",
    "too_much_memory": "decoding needs more memory than the limit",
    "crashed": "the process that decoded the image died of it",
    "unreadable": "storage could not deliver the file",
    "broken_archive": "the rest of a tar, a table or a Parquet file could not be read",
    "missing_image": "the row or sample holds no image",
    "unsafe_path": "the path of a tar's member is absolute or leads out of it",
    "unsafe_member": "a tar's member is a link, a device, a pipe or a file with holes",
    "download_failed": "the web could not deliver the image",
    "forbidden_address": "the URI leads where images are not fetched from",
}


class DecodeError(Exception):
    """An image that becomes a quarantine row; ``code`` is one of ERRORS.

    ``size`` is the announced number of bytes if these are too many.
    """

    def __init__(self, code: str, message: str = "", size: int | None = None) -> None:
        super().__init__(message or ERRORS[code])
        self.code, self.size = code, size


class Decoded(NamedTuple):
    """An image after the rule: ``pixels`` are size x size x 3 uint8; the rest is of the file.

    By a rule with tiles they are tiles x size x size x 3, and ``places`` are the tiles' left and
    top pixels. ``others`` are the same image in the other sizes asked for; ``looks`` is the
    thumbnail of the whole upright image, for its perceptual hash, which therefore depends neither
    on size nor crop.
    """

    pixels: np.ndarray
    format: str
    width: int
    height: int
    looks: np.ndarray
    others: tuple[np.ndarray, ...] = ()
    places: tuple[Place, ...] = ()


class DecodeCard(TypedDict):
    """A rule of decoding in a manifest, with the version of the decoder."""

    size: int
    filter: str
    max_bytes: int
    max_pixels: int
    decoder: str
    tiles: NotRequired[int]


@dataclass(frozen=True)
class DecodeRule:
    """The rule by which every image becomes size x size RGB.

    EXIF orientation is applied. Modes: transparency is composited on white; grey is repeated to
    three channels; 16-bit grey is divided by 257; 32-bit integers likewise if any value exceeds
    255; floats are taken as [0, 1] if none exceeds 1, else as [0, 255]; animations give their
    first frame, and the others are neither decoded nor counted; everything else is converted by
    Pillow. Then the shorter side is resized to ``size`` with an antialiased filter and the centre
    is cropped; an image of that size already is left as it is.

    With ``tiles``, an image whose sides are at least ``size`` is not resized: it becomes up to that
    number of native tiles (see the module ``tiles``). A smaller image is resized as above, to one
    tile.

    ``max_seconds`` of processor time and ``max_memory`` bytes bound the cost of one image if it is
    decoded in a process of its own (see ``sandbox``).
    """

    size: int
    filter: str = "bicubic"
    max_bytes: int = 64 * 2**20
    max_pixels: int = 2**26
    max_seconds: float = 10.0
    max_memory: int = 3 * 2**30
    tiles: int = 0

    def card(self) -> DecodeCard:
        """Return the settings that decide the pixels and the decoder's version, for manifests.

        Limits of time and memory are left out: they are of a machine, and do not change the
        pixels. A rule without tiles does not mention them, like rules of earlier versions.
        """
        found: DecodeCard = {
            "size": self.size,
            "filter": self.filter,
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "decoder": f"Pillow {PIL.__version__}",
        }
        if self.tiles:
            found["tiles"] = self.tiles
        return found

    @classmethod
    def from_card(cls, card: DecodeCard) -> "DecodeRule":
        """Return the rule that a manifest carries."""
        return cls(
            size=card["size"],
            filter=card["filter"],
            max_bytes=card["max_bytes"],
            max_pixels=card["max_pixels"],
            tiles=card.get("tiles", 0),
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as DecodeRule states."""
    if image.mode in {"LA", "PA", "RGBA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode.startswith("I"):
        largest = max((block.max() for block in _blocks(image)), default=0)
        return _grey(image, 1 if image.mode == "I" and largest <= 255 else 1 / 257)
    if image.mode == "F":
        largest = max((block.max() for block in _blocks(image)), default=0)
        return _grey(image, 255 if largest <= 1 else 1)
    return image if image.mode == "RGB" else image.convert("RGB")


def _blocks(image: Image.Image) -> Iterator[np.ndarray]:
    """Yield a deep image's values in float64, some rows at a time, as all would be too many."""
    width, height = image.size
    for top in range(0, height, ROWS):
        part = image.crop((0, top, width, min(height, top + ROWS)))
        yield np.nan_to_num(np.asarray(part).astype(np.float64), posinf=255, neginf=0)


def _grey(image: Image.Image, scale: float) -> Image.Image:
    """Return a deep image times ``scale``, rounded to bytes."""
    blocks = [np.clip(np.rint(block * scale), 0, 255).astype(np.uint8) for block in _blocks(image)]
    return Image.fromarray(np.concatenate(blocks)).convert("RGB")


def resize(image: Image.Image, size: int, filter_name: str = "bicubic") -> Image.Image:
    """Resize the shorter side to ``size`` and crop the centre to a square."""
    width, height = image.size
    if width == height == size:
        return image
    scale = size / min(width, height)
    target = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (target[0] - size) // 2, (target[1] - size) // 2
    if target[0] * target[1] > MOST_RESIZED:
        across, down = width / target[0], height / target[1]
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), FILTERS[filter_name], box)
    if target != image.size:
        image = image.resize(target, FILTERS[filter_name])
    return image.crop((left, top, left + size, top + size))


def refusal(data: bytes, rule: DecodeRule) -> DecodeError | None:
    """Return an error if bytes are refused before decoding."""
    if not data:
        return DecodeError("empty")
    if len(data) > rule.max_bytes:
        return DecodeError("too_many_bytes", f"{len(data)} bytes, limit {rule.max_bytes}")
    return None


def _check_pixels(image: Image.Image, rule: DecodeRule) -> None:
    width, height = image.size
    if width * height > rule.max_pixels:
        limit = f"{width} x {height} pixels, limit {rule.max_pixels}"
        raise DecodeError("too_many_pixels", limit)


def _pixels(image: Image.Image, rule: DecodeRule) -> tuple[np.ndarray, Sequence[Place]]:
    """Return the pixels of an RGB image by the rule, and the places of its tiles, if any."""
    if rule.tiles and min(image.size) >= rule.size:
        return cut_tiles(image, rule.size, rule.tiles)
    pixels = np.asarray(resize(image, rule.size, rule.filter))
    return (pixels[None], [(0, 0)]) if rule.tiles else (pixels, [])


def decode(data: bytes, rule: DecodeRule, other_sizes: Sequence[int] = ()) -> Decoded:
    """Decode one image in this process; raise DecodeError with a code of ERRORS if that fails.

    This function has no limit on time, and does not survive a codec that crashes. Images of
    strangers are decoded by ``sandbox.decode_all``, which calls this function in a process of its
    own.
    """
    if refused := refusal(data, rule):
        raise refused
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                _check_pixels(image, rule)
                image.load()
                _check_pixels(image, rule)  # an icon may hold a larger image than it announces
                ImageOps.exif_transpose(image, in_place=True)
                upright = to_rgb(image)
                pixels, places = _pixels(upright, rule)
                others = tuple(
                    np.asarray(resize(upright, size, rule.filter)) for size in other_sizes
                )
                looks, format = thumbnail(upright), image.format or ""
                return Decoded(pixels, format, width, height, looks, others, tuple(places))
    except DecodeError:
        raise
    except UnidentifiedImageError:
        if data.startswith(PNG):  # Pillow does not report its broken header
            raise DecodeError("corrupt", "the header of the PNG is broken") from None
        raise DecodeError("unknown_format") from None
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", str(error)) from None
    except MemoryError:
        raise DecodeError("too_much_memory") from None
    except Exception as error:
        # Pillow's decoders raise almost anything on hostile bytes; each costs its row only.
        text = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
        code = "truncated" if "truncated" in text.lower() else "corrupt"
        raise DecodeError(code, text) from None


def decoded_or_error(
    data: bytes, rule: DecodeRule, other_sizes: Sequence[int] = ()
) -> Decoded | DecodeError:
    """Return the result of ``decode``, or the error that it raises."""
    try:
        return decode(data, rule, other_sizes)
    except DecodeError as error:
        return error
