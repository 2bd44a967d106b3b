"""The perceptual hash of an image: recompressed and resized copies have nearly the same bits.

It is the DCT hash of C. Zauner, "Implementation and benchmarking of perceptual image hash
functions" (2010), section 3.2, as pHash's ``ph_dct_imagehash`` computes it: 32 x 32 grey pixels,
the 8 x 8 lowest frequencies without those that are constant along an axis, one bit each for those
above their median. All numbers are whole and below 2^53, so every machine finds the same bits.

It sees composition, not content: pictures of centred objects on plain ground are alike to it.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, count, pairwise

import numpy as np
from PIL import Image

SIDE = 32
# Standard deviation in grey levels. A flatter image has no hash: noise would decide its bits, and
# all blank images would be copies of each other.
LEAST_CONTRAST = 4.0
# The largest number of bits in which the hashes of near duplicates differ. Among pairs of unlike
# images, 1e-6 of Fashion-MNIST's and none in 4 million of CIFAR-10's are that near (at 4 bits 2e-5
# and 2e-7); each image of a large corpus is compared with all others. Among copies by JPEG 75 or
# half the size, 66 to 100 % are that near.
DISTANCE = 2
MOST_DISTANCE = 8
CANDIDATES = 2**17  # pairs that are compared at once
MOST_COVERS = 64
# Cost of comparing a pair, as a share of the cost of bringing a hash to others. Hashes of real
# images are less even than random ones, and more of them meet: ten times the figure measured on
# random ones.
PAIR_COST = 0.1

_ANGLES = np.pi / (2 * SIDE) * np.outer(np.arange(1, 9), 2 * np.arange(SIDE) + 1)
_COSINES = np.rint(2**12 * np.cos(_ANGLES))  # DCT-II, without its scale


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the thumbnail of an RGB image for its hash, SIDE x SIDE uint8."""
    grey = image.convert("L")
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))


def perceptual_hashes(thumbnails: Sequence[np.ndarray]) -> list[int | None]:
    """Return the 64 bits of each thumbnail, None where it has too little contrast for them.

    They are hashed together, which is several times faster than one by one.
    """
    if not thumbnails:
        return []
    grey = np.stack(thumbnails).astype(np.float64)
    flat = grey.reshape(len(grey), -1)
    count = flat.shape[1]
    shown = count * (flat * flat).sum(1) - flat.sum(1) ** 2 >= (LEAST_CONTRAST * count) ** 2
    low = (_COSINES @ grey @ _COSINES.T).reshape(len(grey), 64)
    middle = np.sort(low, 1)[:, 31:33].sum(1, keepdims=True)
    bits = np.packbits(2 * low > middle, axis=1).view(">u8")[:, 0].tolist()
    return [value if some else None for value, some in zip(bits, shown, strict=True)]


def covers(distance: int, hashes: int) -> list[int]:
    """Return masks of 64 bits: two hashes within ``distance`` bits agree on all bits of one mask.

    Cut into distance + r bands, they agree in r bands at least. More bands make more masks, each
    of more bits, on which fewer ``hashes`` meet by chance; the cheapest r is taken.
    """

    def cost(r: int) -> float:
        bits = 64 * r // (distance + r)
        return math.comb(distance + r, r) * (1 + PAIR_COST * hashes / (2 << bits))

    choices = [r for r in range(1, 5) if math.comb(distance + r, r) <= MOST_COVERS]
    r = min(choices, key=cost)
    edges = np.linspace(0, 64, distance + r + 1).round().astype(int).tolist()
    bands = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    return [sum(some) for some in combinations(bands, r)]


def earlier(
    hashes: np.ndarray, places: np.ndarray, mask: int, distance: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find for hashes, N distinct uint64, the earliest that lies near among those before them.

    ``places``, N int64, give the order; only hashes that agree on all bits of ``mask`` are
    compared. Returns rows, the place found for each, and the bits in which the two differ. Memory
    grows with N, for any number of agreeing hashes.
    """
    keys = hashes & np.uint64(mask)
    order = np.lexsort((places, keys))
    keys, hashes, places = keys[order], hashes[order], places[order]
    first = np.searchsorted(keys, keys, "left")
    best = np.full(len(order), -1)
    left = np.arange(len(order))
    for step in count(1):
        left = left[left - step >= first[left]]
        if not len(left):
            break
        near = left[np.bitwise_count(hashes[left] ^ hashes[left - step]) <= distance]
        best[near] = near - step  # the larger the step, the earlier
    rows = np.flatnonzero(best >= 0)
    apart = np.bitwise_count(hashes[rows] ^ hashes[best[rows]])
    return order[rows], places[best[rows]], apart.astype(np.int32)


class HammingIndex:
    """An exact index of N hashes, uint64, for queries within ``distance`` bits.

    Cut into distance + 1 bands, two such hashes agree in one band at least (multi-index hashing:
    Norouzi, Punjani & Fleet, CVPR 2012). So only hashes that share a band are compared.
    """

    def __init__(self, hashes: np.ndarray, distance: int = DISTANCE) -> None:
        self.hashes, self.distance = hashes.astype(np.uint64), distance
        edges = np.linspace(0, 64, distance + 2).round().astype(int)
        self.bands = []
        for low, high in pairwise(edges):
            keys = self._key(self.hashes, low, high)
            order = np.argsort(keys, kind="stable").astype(np.uint32)
            # Hashes that are compared with the same query lie beside each other in memory.
            self.bands.append((low, high, order, keys[order], self.hashes[order]))

    @staticmethod
    def _key(hashes: np.ndarray, low: int, high: int) -> np.ndarray:
        key: np.ndarray = (hashes >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        return key.astype(np.uint32) if high - low <= 32 else key

    def pairs(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows of ``queries`` and of the hashes that lie near each other; some twice."""
        queries = queries.astype(np.uint64)
        for low, high, order, keys, hashes in self.bands:
            wanted = self._key(queries, low, high)
            turn = np.argsort(wanted)  # a search in order stays in the cache
            wanted, asked = wanted[turn], queries[turn]
            first = np.searchsorted(keys, wanted, "left")
            counts = np.searchsorted(keys, wanted, "right") - first
            ends = np.cumsum(counts)
            start = 0
            while start < len(queries):
                before = ends[start - 1] if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, before + CANDIDATES, "right")))
                some = counts[start:stop]
                places = np.arange(some.sum())
                places += np.repeat(first[start:stop] - np.cumsum(some) + some, some)
                apart = np.bitwise_count(np.repeat(asked[start:stop], some) ^ hashes[places])
                near = np.flatnonzero(apart <= self.distance)
                rows = start + np.searchsorted(np.cumsum(some), near, "right")
                yield turn[rows], order[places[near]]
                start = stop

    def meets(self, queries: np.ndarray) -> np.ndarray:
        """Tell for each query whether a hash lies near it."""
        found = np.zeros(len(queries), bool)
        for rows, _ in self.pairs(queries):
            found[rows] = True
        return found
