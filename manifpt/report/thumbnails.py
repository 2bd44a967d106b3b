"""Images of rows by their URIs, decoded in the sandbox.

An image that cannot be read or decoded has no picture, which has no other effect. Images on the web
are not fetched: a page is made without requests to servers of others.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Unit
from manifpt.images.contents import is_web
from manifpt.images.decode import Decoded, DecodeError
from manifpt.images.ids import image_id
from manifpt.images.raw import Raw, raw_images
from manifpt.images.sandbox import decode_all
from manifpt.images.sources import PARQUET, TARS

# The most archives that are opened for a page, and the most images passed over in each.
MOST_CONTAINERS, MOST_PASSED = 48, 20_000

_ENDS = "|".join(re.escape(end) for end in (*TARS, *PARQUET))
_MEMBER = re.compile(rf"(.+?(?:{_ENDS}))#.*", re.DOTALL)


def thumbnails(uris: Iterable[str], rule: DecodeRule) -> dict[str, np.ndarray]:
    """Return the pixels, size x size x 3 uint8, of the images that can be read."""
    found: dict[str, np.ndarray] = {}
    for uri, decoded in decoded_images(uris, rule):
        found[uri] = decoded.pixels[0] if decoded.pixels.ndim == 4 else decoded.pixels
    return found


def decoded_images(uris: Iterable[str], rule: DecodeRule) -> Iterator[tuple[str, Decoded]]:
    """Yield the images that can be read, with their URIs."""
    for raw, decoded in decode_all(raws_of(set(uris)), rule):
        if not isinstance(decoded, DecodeError):
            yield raw.uri, decoded


def raws_of(uris: set[str]) -> Iterator[tuple[Raw, bytes]]:
    """Yield the undecoded images of URIs, those of one archive together, without web addresses."""
    containers: dict[str, set[str]] = {}
    for uri in sorted(uris):
        container = container_of(uri)
        if container:
            containers.setdefault(container, set()).add(uri)
        elif not is_web(uri):
            yield from _read(Unit("files", (uri,), ("",), None, None), {uri})
    for container, wanted in islice(containers.items(), MOST_CONTAINERS):
        kind = "parquet" if container.endswith(PARQUET) else "tar"
        yield from _read(Unit(kind, (container,), ("",), None, None), wanted)  # type: ignore[arg-type]


def container_of(uri: str) -> str | None:
    """Return the URI of the tar or Parquet file that holds an image; None for a file of its own.

    >>> container_of("s3://bucket/a.tar#0001.png")
    's3://bucket/a.tar'
    """
    match = _MEMBER.fullmatch(uri)
    return match[1] if match else None


def _read(unit: Unit, wanted: set[str]) -> Iterator[tuple[Raw, bytes]]:
    """Yield the images of a unit whose URI is wanted, until there are no more of these."""
    left = set(wanted)
    try:
        for raw in islice(raw_images(unit, DecodeRule(1)), MOST_PASSED):
            if raw.uri in left and raw.data:
                left.discard(raw.uri)
                yield raw, raw.data
            if not left:
                return
    except ManifptError as error:
        print(f"no pictures of {unit.uris[0]}: {error}", file=sys.stderr, flush=True)


def uris_of_reals(manifold: str, files: Sequence[str], ids: Iterable[str | None]) -> dict[str, str]:
    """Return the URIs of reals of a manifold by their ids; ``files`` are its tables of rows.

    The id of a tile has the URI of its image.
    """
    wanted = {id for id in ids if id is not None}
    found: dict[str, str] = {}
    for path in files:
        if len(found) == len(wanted):
            break
        table = storage.read_parquet(storage.join(manifold, path), ["id", "uri"])
        kept = table.filter(pc.is_in(table["id"], pa.array(sorted(wanted), pa.string())))
        found |= dict(zip(kept["id"].to_pylist(), kept["uri"].to_pylist(), strict=True))
    missing = {id for id in wanted - found.keys() if image_id(id) in found}
    return found | {id: found[image_id(id)] for id in missing}
