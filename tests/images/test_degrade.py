"""Degradations against other libraries and known values; copies depend on no batch and no order."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import draw
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from manifpt.images import DecodeRule
from manifpt.images.decode import decode
from manifpt.images.degrade import (
    KINDS,
    Degradation,
    StrengthRange,
    blur,
    crop,
    generator,
    jpeg,
    noise,
)
from manifpt.images.degrade import rescale as resized
from manifpt.images.degraded_copies import Augmentation, view
from manifpt.images.raw import Raw
from manifpt.images.read import images_table, pixels_of, row_of, sized

ALL = tuple(map(StrengthRange.parse, KINDS))


def smooth(size: int) -> np.ndarray:
    """A picture that is the same in every size."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    values = [np.sin(4 * x + 1), np.cos(5 * y), np.sin(3 * x * y)]
    return (127.5 + 100 * np.stack(values, -1)).round().astype(np.uint8)


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 5])
def test_blur_is_a_gaussian(sigma):
    """Pillow's boxes are near it; within three sigma of an edge they are not the same."""
    image = draw("stripes", 3, 64)
    exact = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest", truncate=8)
    inside = slice(15, -15)
    errors = np.abs(blur(image, sigma) - exact)[inside, inside]
    assert errors.mean() < 1.5
    assert np.abs(image - exact)[inside, inside].mean() > 8 * errors.mean()


@pytest.mark.parametrize("scale", [0.5, 0.75, 2])
def test_resize_is_there_and_back_with_an_antialiased_filter(scale):
    image = draw("real", 5, 28)
    values = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    small = interpolate(values, (round(28 * scale),) * 2, mode="bicubic", antialias=True)
    back = interpolate(small.clamp(0, 255), (28, 28), mode="bicubic", antialias=True)
    expected = back.clamp(0, 255)[0].permute(1, 2, 0).numpy()
    assert np.abs(resized(image, scale) - expected).max() < 3


def test_jpeg_has_the_quality_that_was_asked_for():
    image = draw("stripes", 1, 32)
    errors = [np.abs(jpeg(image, q).astype(int) - image).mean() for q in (95, 75, 50, 10)]
    assert errors == sorted(errors)
    assert 0 < errors[0] < errors[-1]
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=75)
    np.testing.assert_array_equal(jpeg(image, 75), np.asarray(Image.open(sink)))


def test_a_crop_of_a_ramp_is_the_ramp_of_its_box():
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None] * 6, (40, 40, 3))
    found = crop(np.ascontiguousarray(ramp), 0.7, (0.25, 0.9))[20, 4:-4, 0]
    left = 0.25 * 0.3 * 40
    expected = 6 * (left + 0.7 * (np.arange(40) + 0.5) - 0.5)[4:-4]
    assert np.abs(found - expected).max() <= 1
    np.testing.assert_array_equal(crop(ramp, 1, (0.3, 0.3)), ramp)


def test_noise_has_the_deviation_that_was_asked_for():
    grey = np.full((100, 100, 3), 128, np.uint8)
    found = noise(grey, 0.1, generator("a")).astype(float) - 128
    assert found.std() == pytest.approx(25.5, rel=0.03)
    assert abs(found.mean()) < 0.5
    assert noise(np.full((9, 9, 3), 255, np.uint8), 1, generator("a")).max() == 255


@pytest.mark.parametrize("text", ["jpeg:75", "blur:2", "resize:0.5", "crop:0.9", "noise:0.125"])
def test_notation_says_all_of_a_degradation(text):
    image, how = draw("blocks", 2, 20), Degradation.parse(text)
    assert str(how) == text
    first = how(image, "key")
    assert first.shape == image.shape
    assert first.dtype == np.uint8
    assert (first != image).any()
    np.testing.assert_array_equal(first, Degradation.parse(text)(image, "key"))
    random = how.kind in {"crop", "noise"}
    assert (how(image, "another") != first).any() == random


def test_identity_does_nothing():
    image = draw("blocks", 2)
    np.testing.assert_array_equal(Degradation.parse("identity")(image, "key"), image)


@pytest.mark.parametrize(
    "text", ["", "jpg:75", "jpeg", "jpeg:0", "jpeg:101", "crop:1.1", "blur:-1", "jpeg:50-60", "x y"]
)
def test_what_is_no_degradation_is_refused(text):
    with pytest.raises(ValueError, match=r"degradation|goes from|one strength"):
        Degradation.parse(text)


@pytest.mark.parametrize("text", ["jpeg:90-50", "noise:0-2", "identity", "resize:2-"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r"degradation|goes from"):
        StrengthRange.parse(text)


@pytest.mark.parametrize("text", [*KINDS, "jpeg:70-71", "blur:2"])
def test_drawn_strengths_fill_their_range_and_are_their_notation(text):
    one = StrengthRange.parse(text)
    assert StrengthRange.parse(str(one)) == one
    drawn = [one.draw(generator(f"{text}{n}")) for n in range(300)]
    strengths = np.array([d.strength for d in drawn])
    assert one.low <= strengths.min() <= strengths.max() <= one.high
    assert np.ptp(strengths) >= 0.9 * (one.high - one.low)
    assert all(Degradation.parse(str(d)) == d for d in drawn)
    if text == "resize":  # as often smaller as larger
        assert 0.4 < (strengths < 1).mean() < 0.6


def images(count: int, sizes: tuple[int, ...] = ()) -> pa.Table:
    """An images table of PNG files of 24 pixels, in 16 pixels and other sizes."""
    rows, pixels = [], []
    for n in range(count):
        sink = io.BytesIO()
        Image.fromarray(draw("real", n, 24)).save(sink, "PNG")
        raw, rule = Raw(f"i{n}", f"u{n}", sink.getvalue()), DecodeRule(16)
        row, arrays = row_of(raw, decode(sink.getvalue(), rule, sizes), rule, sizes)
        rows.append(row)
        pixels.append(arrays)
    return images_table(rows, pixels, sizes)


def by_id(table: pa.Table) -> dict[str, tuple]:
    columns = [table[n].to_pylist() for n in ("id", "pixel_sha256", "degradation")]
    return {
        row[0]: (*row[1:], image.tobytes())
        for row, image in zip(zip(*columns, strict=True), pixels_of(table), strict=True)
    }


def test_copies_depend_neither_on_the_batch_nor_on_the_order():
    augmentation, table = Augmentation(ALL, copies=3), images(30)
    split = ["train" if n % 3 else "validation" if n % 2 else "test" for n in range(30)]
    whole, splits = augmentation.extended(table, split, "bicubic")
    order = np.random.default_rng(0).permutation(30)
    parts = [order[:7], order[7:8], order[8:]]
    pieces = [
        augmentation.extended(table.take(pa.array(p)), [split[i] for i in p], "bicubic")[0]
        for p in parts
    ]
    assert by_id(pa.concat_tables(pieces)) == by_id(whole)
    assert len(splits) == whole.num_rows == len(by_id(whole))
    counts = {name: splits.count(name) / split.count(name) for name in set(split)}
    assert counts == {"train": 4, "validation": 2, "test": 1}


def test_copies_have_their_originals_pixel_hash_and_say_what_was_done():
    table = images(40)
    extended, _ = Augmentation(ALL, copies=2).extended(table, ["train"] * 40, "bicubic")
    rows, hashes = by_id(extended), dict(zip(*table.select(["id", "pixel_sha256"]), strict=True))
    hashes = {key.as_py(): value.as_py() for key, value in hashes.items()}
    clean = {name: image for name, (_, how, image) in rows.items() if how is None}
    np.testing.assert_array_equal(list(clean), table["id"].to_pylist())
    kinds, changed = [], 0
    for name, (sha, how, image) in rows.items():
        original = name.partition("~")[0]
        assert sha == hashes[original]
        if how:
            kinds.append(Degradation.parse(how).kind)
            if kinds[-1] in {
                "jpeg",
                "blur",
                "resize",
            }:  # nothing of these is drawn but the strength
                again = Degradation.parse(how)(
                    np.frombuffer(clean[original], np.uint8).reshape(16, 16, 3), ""
                )
                assert again.tobytes() == image
                changed += image != clean[original]
    assert changed > 0.8 * sum(kind in {"jpeg", "blur", "resize"} for kind in kinds)
    assert all(8 <= kinds.count(kind) <= 26 for kind in KINDS)
    other, _ = Augmentation(ALL, copies=2, seed=1).extended(table, ["train"] * 40, "bicubic")
    assert by_id(other) != rows


def test_copies_are_made_again_from_their_ids():
    table, augmentation = images(12), Augmentation(ALL, copies=2, seed=4)
    extended, _ = augmentation.extended(table, ["train"] * 12, "bicubic")
    rows = by_id(extended)
    again = Augmentation.from_card(augmentation.card()).copies_again(
        table, {"i3~2", "i7~1"}, "bicubic"
    )
    assert by_id(again) == {name: rows[name] for name in ("i3~2", "i7~1")}


def test_without_validation_only_training_has_copies():
    _, splits = Augmentation(ALL, validation=False).extended(
        images(3), ["train", "validation", "test"], "bicubic"
    )
    assert splits == ["train", "validation", "test", "train"]


def test_all_sizes_of_an_image_are_degraded_alike():
    rows, pixels = [], []
    for n in range(8):
        row = dict.fromkeys(("id", "uri", "pixel_sha256", "pixel_sha256_64"), str(n))
        rows.append(row)
        pixels.append([smooth(128), smooth(64)])
    table = view(images_table(rows, pixels, (64,)), Degradation.parse("crop:0.6"), "bicubic")
    large, small = pixels_of(table), pixels_of(sized(table, 64))
    halves = large.reshape(8, 64, 2, 64, 2, 3).mean((2, 4))
    assert np.abs(halves - small)[:, 2:-2, 2:-2].max() < 4
    assert len({image.tobytes() for image in large}) == 8  # each at a place of its own
