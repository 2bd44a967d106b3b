"""Images of rows as PNG files of bounded size: the rule of access, and the decoding.

An address of the viewer names a row, never a file. The row's URI is read only if it is in an input
of the output, and decoded in the sandbox, one image after another. Images on the web are not
fetched.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from threading import Lock
from typing import NamedTuple

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule
from manifpt.images.contents import is_web
from manifpt.images.decode import Decoded, DecodeError
from manifpt.images.patterns import is_pattern, root_of
from manifpt.images.sandbox import decode_all
from manifpt.images.sources import Input
from manifpt.report.page_pictures import png
from manifpt.report.thumbnails import container_of, raws_of

# Sides of pictures in pixels; an image gets the largest side that does not exceed its own.
SIDES = (512, 256, 128, 64, 32, 28)
RULE, OTHERS = DecodeRule(SIDES[0]), SIDES[1:]
MOST_BYTES = 64 * 2**20  # of pictures that are held
MOST_PAGES = 64  # tables whose images are read together
ERROR_BYTES = 512  # cost of an image without a picture


class Picture(NamedTuple):
    """The centre square of an image as a PNG file, and the size and format of the whole."""

    png: bytes
    width: int
    height: int
    format: str


class AllowedPlaces:
    """The places from which images may be read: local inputs, and the buckets of inputs.

    ``given`` are URIs, patterns, or NAME=URI, as ``--input`` takes them.
    """

    def __init__(self, given: Iterable[str]) -> None:
        self.roots: set[str] = set()
        self.buckets: set[tuple[str, str]] = set()
        for text in given:
            with suppress(ManifptError):  # a scheme that no image is read from
                self._add(Input.parse(text).uri)

    def _add(self, uri: str) -> None:
        if storage.is_remote(uri):
            self.buckets.add((storage.scheme(uri), storage.bucket_and_key(uri)[0]))
        else:
            self.roots.add(os.path.realpath(root_of(uri) if is_pattern(uri) else uri))

    def refusal(self, uri: str) -> DecodeError | None:
        """Return an error if an image must not be read, else None.

        Links are followed before a local path is compared.
        """
        if is_web(uri):
            return DecodeError("forbidden_address", "images on the web are not fetched")
        try:
            inside = self._inside(storage.absolute(container_of(uri) or uri))
        except (ManifptError, ValueError) as error:  # ValueError: of a path with NUL
            return DecodeError("forbidden_address", str(error))
        if inside:
            return None
        return DecodeError(
            "forbidden_address", "it is in no input of the output; name its place by --allow"
        )

    def _inside(self, uri: str) -> bool:
        """Tell whether a place is in a local input, or in the bucket of one."""
        if storage.is_remote(uri):
            bucket, key = storage.bucket_and_key(uri)
            return (storage.scheme(uri), bucket) in self.buckets and ".." not in key.split("/")
        path = os.path.realpath(uri)
        return any(os.path.commonpath([path, root]) == root for root in self.roots)


class PictureCache:
    """Pictures of images by URI; ``allowed`` are places besides those that are given later."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self.allowed = tuple(allowed)
        self._places: dict[tuple[str, ...], AllowedPlaces] = {}
        self._held: OrderedDict[str, Picture | DecodeError] = OrderedDict()
        self._bytes = 0
        self._pages: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._lock = Lock()

    def expect(self, uris: Iterable[str]) -> None:
        """Announce the images of a page, so that those of one archive are read in one pass."""
        by_container: dict[str, set[str]] = {}
        for uri in uris:
            container = container_of(uri)
            if container:
                by_container.setdefault(container, set()).add(uri)
        with self._lock:
            for container, some in by_container.items():
                self._pages[container] = frozenset(some)
                self._pages.move_to_end(container)
            while len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)

    def picture(self, uri: str, inputs: Sequence[str]) -> Picture:
        """Return the picture of an image in some inputs; raise DecodeError if there is none."""
        key = tuple(inputs)
        if key not in self._places:
            self._places[key] = AllowedPlaces([*inputs, *self.allowed])
        refusal = self._places[key].refusal(uri)
        if refusal:
            raise refusal
        with self._lock:
            if uri not in self._held:
                self._read(uri)
            self._held.move_to_end(uri)
            found = self._held[uri]
        if isinstance(found, DecodeError):
            raise found
        return found

    def _read(self, uri: str) -> None:
        """Decode an image, and those of its archive that are on the same page."""
        expected = self._pages.pop(container_of(uri) or "", frozenset())
        wanted = {uri, *(expected - self._held.keys() if uri in expected else ())}
        for raw, decoded in decode_all(raws_of(wanted), RULE, OTHERS):
            found = decoded if isinstance(decoded, DecodeError) else pictured(decoded)
            wanted.discard(raw.uri)
            self._hold(raw.uri, found)
        for missing in wanted:
            self._hold(missing, DecodeError("unreadable", "it could not be read, or has moved"))
        if uri not in self._held:
            self._hold(uri, DecodeError("unreadable"))

    def _hold(self, uri: str, found: Picture | DecodeError) -> None:
        self._held[uri] = found
        self._bytes += _size(found)
        while self._bytes > MOST_BYTES and len(self._held) > 1:
            self._bytes -= _size(self._held.popitem(last=False)[1])


def _size(found: Picture | DecodeError) -> int:
    return ERROR_BYTES if isinstance(found, DecodeError) else len(found.png)


def pictured(decoded: Decoded) -> Picture:
    """Return the picture of a decoded image, in the size that fits it."""
    arrays = dict(zip(SIDES, (decoded.pixels, *decoded.others), strict=True))
    shorter = min(decoded.width, decoded.height)
    side = next((side for side in SIDES if side <= shorter), SIDES[-1])
    return Picture(png(arrays[side], side), decoded.width, decoded.height, decoded.format)
