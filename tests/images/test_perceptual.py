import io

import numpy as np
import pytest
from conftest import BENCHMARK, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifpt.images import DecodeRule, plan, read_unit
from manifpt.images.decode import decode
from manifpt.images.perceptual import DISTANCE, HammingIndex, perceptual_hashes, thumbnail

RULE = DecodeRule(16)


def perceptual_hash(image: Image.Image) -> int | None:
    return perceptual_hashes([thumbnail(image)])[0]


def test_the_bits_are_those_of_the_cosine_transform():
    from scipy.fft import dctn

    image = Image.fromarray(draw("real", 0, 32))  # of the size that is transformed: not resized
    low = dctn(np.asarray(image.convert("L"), float))[1:9, 1:9].ravel()
    expected = int("".join("01"[int(value > np.median(low))] for value in low), 2)
    assert (perceptual_hash(image) ^ expected).bit_count() <= 1  # cosines have 12 bits


def picture(number: int, side: int) -> Image.Image:
    """Noise with the spectrum of photographs, whose amplitude falls with the frequency."""
    noise = np.fft.fft2(np.random.default_rng(number).normal(size=(side, side, 3)), axes=(0, 1))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = np.inf
    smooth = np.fft.ifft2(noise / frequency[..., None], axes=(0, 1)).real
    smooth /= smooth.std()
    return Image.fromarray(np.clip(128 + 50 * smooth, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("quality", [95, 75])
@pytest.mark.parametrize("side", [64, 96, 160])
def test_recompressed_and_resized_copies_are_near_and_others_are_not(quality, side):
    hashes = []
    for number in range(40):
        image, copy = picture(number, 96), io.BytesIO()
        image.resize((side, side), Image.Resampling.BICUBIC).save(copy, "JPEG", quality=quality)
        looks = decode(copy.getvalue(), RULE).looks
        hashes.append(perceptual_hashes([thumbnail(image), looks]))
    originals, copies = np.array(hashes, np.uint64).T
    near = np.bitwise_count(originals[:, None] ^ copies[None]) <= DISTANCE
    assert near.diagonal().mean() >= 0.9
    assert near.sum() == near.diagonal().sum()


def test_flat_images_have_no_hash():
    assert perceptual_hash(Image.new("RGB", (64, 64), (0, 0, 0))) is None
    noise = np.random.default_rng(0).normal(128, 2, (64, 64, 3)).astype(np.uint8)
    assert perceptual_hash(Image.fromarray(noise)) is None


def test_few_unrelated_images_are_near():
    tars = [str(BENCHMARK / "real" / f"{name}.tar.gz") for name in ("train", "validation", "test")]
    hashes = [
        value
        for unit in plan(tars)
        for table in read_unit(unit, DecodeRule(28))
        for value in table["perceptual_hash"].to_pylist()
        if value is not None
    ]
    values = np.array(hashes, np.uint64)
    near = np.bitwise_count(values[:, None] ^ values[None]) <= DISTANCE
    assert len(values) >= 500
    assert (
        near[np.triu_indices(len(values), 1)].mean() <= 2e-5
    )  # two pairs; 1e-6 of the 4,000 reals


@given(st.integers(0, 2**32), st.integers(0, 8), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_the_index_finds_what_brute_force_finds(seed, distance, count):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    queries = rng.integers(0, 2**64, 40, dtype=np.uint64)
    for n in range(30 if count else 0):  # most within a few bits of one of them
        flips = np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, n % 11).astype(np.uint64))
        queries[n] = rng.choice(hashes) ^ (flips if n % 11 else np.uint64(0))
    near = np.bitwise_count(queries[:, None] ^ hashes[None]) <= distance
    index = HammingIndex(hashes, distance)
    found = {(int(a), int(b)) for r, o in index.pairs(queries) for a, b in zip(r, o, strict=True)}
    assert found == {(int(a), int(b)) for a, b in np.argwhere(near)}
    assert np.array_equal(index.meets(queries), near.any(1))
