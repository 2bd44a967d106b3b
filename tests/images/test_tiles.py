"""Which native tiles an image has, and how they travel."""

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifpt.images import DecodeRule, plan, read_unit, sandbox
from manifpt.images.decode import DecodeError, decode, decoded_or_error
from manifpt.images.degrade import Degradation, StrengthRange
from manifpt.images.degraded_copies import Augmentation, view
from manifpt.images.ids import image_id, tile_id
from manifpt.images.read import as_space_sees, chunk_rows, pixels_of
from manifpt.images.stacks import TILE, image_starts, reading_rule, sizes_beside, tiles_of
from manifpt.images.tiles import PHASE, places_of_tiles, textures

RULE = DecodeRule(16, tiles=5)


def picture(number: int, width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng([number, width, height])
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


SIDES = st.integers(16, 150)


@settings(max_examples=60)
@given(SIDES, SIDES, st.integers(1, 12), st.integers(0, 9))
def test_tiles_are_native_pixels_apart_and_the_same_each_time(width, height, most, number):
    pixels = picture(number, width, height)
    found = decode(png(pixels), DecodeRule(16, tiles=most))
    assert len(found.places) == min(most, (width // 16) * (height // 16)) == len(found.pixels)
    for (x, y), tile in zip(found.places, found.pixels, strict=True):
        assert x % PHASE == 0
        assert y % PHASE == 0
        assert np.array_equal(tile, pixels[y : y + 16, x : x + 16])
        assert tile.shape == (16, 16, 3)  # so the tile is within the image
    apart = {(x // 16, y // 16) for x, y in np.array(found.places) - min(found.places)}
    assert len(apart) == len(found.places)
    assert list(found.places) == sorted(found.places, key=lambda place: place[::-1])
    assert found.places == decode(png(pixels), DecodeRule(16, tiles=most)).places


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_small_image_is_one_tile_and_has_the_pixels_that_it_had_without(width, height):
    width = min(width, 15) if max(width, height) > 16 else width
    data = png(picture(0, width, height))
    tiled, whole = decode(data, RULE), decode(data, DecodeRule(16))
    assert tiled.places == ((0, 0),)
    assert np.array_equal(tiled.pixels, whole.pixels[None])


def test_texture_is_that_of_loops_and_tiles_stand_for_all_of_it():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (8, 24), dtype=np.uint8)
    sums, clipped = textures(grey, 8)
    for n in range(3):
        tile = grey[:, 8 * n : 8 * n + 8].astype(int)
        bent = sum((2 * tile[i, j] - tile[i - 1, j] - tile[i + 1, j]) ** 2
                   for i in range(1, 7) for j in range(8))  # fmt: skip
        bent += sum((2 * tile[i, j] - tile[i, j - 1] - tile[i, j + 1]) ** 2
                    for i in range(8) for j in range(1, 7))  # fmt: skip
        assert sums[n] == bent
        assert clipped[n] == np.isin(tile, (0, 255)).sum()
    # Sixteen tiles in order of their noise, but that some are white: every fourth of the others.
    steps = np.repeat(np.arange(16), 16)[None, :, None] * rng.choice([-1, 1], (16, 256, 3))
    row = (128 + steps).astype(np.uint8)
    row[:, -64:] = 255
    found = places_of_tiles(Image.fromarray(row), 16, 3)
    assert found == [(16 * n, 0) for n in (2, 6, 10)]
    assert (
        len(places_of_tiles(Image.fromarray(row), 16, 13)) == 13
    )  # a white one, where there are no others


def test_the_child_sends_tiles_as_decode_makes_them():
    rule = DecodeRule(16, tiles=5)
    shapes = [(16, 16), (9, 30), (64, 64), (200, 33), (16, 32), (300, 500)]
    images = [png(picture(n, *shape)) for n, shape in enumerate(shapes)] * 3
    images.insert(2, b"no image")
    found = list(sandbox.decode_all(enumerate(images), rule, (24, 16)))
    for (_, one), data in zip(found, images, strict=True):
        expected = decoded_or_error(data, rule, (24, 16))
        if isinstance(expected, DecodeError):
            assert one.code == expected.code
        else:
            assert one.places == expected.places
            assert np.array_equal(one.pixels, expected.pixels)
            assert all(map(np.array_equal, one.others, expected.others))


def test_a_card_says_tiles_only_where_there_are_some():
    assert "tiles" not in DecodeRule(16).card()
    for rule in (DecodeRule(16), RULE):
        assert DecodeRule.from_card(rule.card()) == rule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiles")
    for n, (width, height) in enumerate([(64, 64), (16, 16), (40, 20), (100, 80), (8, 8)]):
        (path / f"{n}.png").write_bytes(png(picture(n, width, height)))
    (path / "broken.png").write_bytes(b"no image")
    return path


def read(folder, rule=RULE, chunk=None, sizes=()):
    return [
        t for u in plan([str(folder)]) for t in read_unit(u, rule, chunk=chunk, other_sizes=sizes)
    ]


def test_a_table_has_a_row_an_image_and_chunks_end_by_tiles(folder):
    (table,) = read(folder)
    (whole,) = read(folder, DecodeRule(16))
    assert table["id"].to_pylist() == whole["id"].to_pylist()
    good = table.filter(table["error"].is_null())
    rows = as_space_sees(good, RULE)
    counts = [5, 1, 2, 5, 1]
    assert rows["id"].to_pylist() == np.repeat(good["id"].to_pylist(), counts).tolist()
    assert rows["tile"].to_pylist() == [n for count in counts for n in range(count)]
    assert image_starts(rows).tolist() == np.cumsum([0, *counts[:-1]]).tolist()
    assert set(TILE) <= set(rows.column_names)
    hashes = [hashlib.sha256(tile.tobytes()).hexdigest() for tile in pixels_of(rows)]
    assert rows["tile_sha256"].to_pylist() == hashes
    # An image of one tile has the hash that it has without tiles.
    small = [n for n, count in enumerate(counts) if count == 1]
    mine, theirs = (t.filter(t["error"].is_null())["pixel_sha256"] for t in (table, whole))
    assert mine.take(small) == theirs.take(small)
    sizes = [t.num_rows for t in read(folder, chunk=5)]
    assert sizes == [1, 3, 2]  # 5 tiles; 1 + 2 + 5; 1, and the broken one


def test_spaces_that_take_whole_images_get_them_beside_tiles(folder):
    rules = [DecodeRule(24), RULE, DecodeRule(16)]
    rule = reading_rule(rules)
    assert (rule, sizes_beside(rule, rules)) == (RULE, (16, 24))
    (table,) = read(folder, rule, sizes=(16, 24))
    good = table.filter(table["error"].is_null())
    for one in (rules[0], rules[2]):
        (alone,) = read(folder, one)
        alone = alone.filter(alone["error"].is_null())
        found = as_space_sees(good, one)
        assert np.array_equal(pixels_of(found), pixels_of(alone))
        assert found["pixel_sha256"] == alone["pixel_sha256"]


def test_tiles_are_degraded_alike_and_each_by_itself(folder):
    (table,) = read(folder)
    good = table.filter(table["error"].is_null())
    blurred = view(good, Degradation.parse("blur:1"), "bicubic")
    expected = [Degradation.parse("blur:1")(tile, "") for tile in tiles_of(good)]
    assert np.array_equal(tiles_of(blurred), np.stack(expected))
    noise = Degradation.parse("noise:0.05")
    noisy = tiles_of(view(good, noise, "bicubic")).astype(int)
    moved = noisy[:2] - tiles_of(good)[:2]
    assert not np.array_equal(moved[0], moved[1])
    small = view(read(folder, DecodeRule(16))[0].take([1]), noise, "bicubic")
    assert np.array_equal(noisy[5], pixels_of(small)[0])  # as it was without tiles
    augmentation = Augmentation((StrengthRange.parse("jpeg:50-90"),), copies=2)
    both, split = augmentation.extended(good, ["train"] * good.num_rows, "bicubic")
    assert both.num_rows == len(split) == 3 * good.num_rows
    kinds = both["degradation"].to_pylist()
    counts = np.array([5, 1, 2, 5, 1])
    rows = as_space_sees(both, RULE)
    of = np.repeat(kinds, [*counts, *counts.repeat(2)])
    assert rows["degradation"].to_pylist() == of.tolist()


@given(st.text(st.characters(exclude_characters="~")), st.integers(0, 300))
def test_ids_of_tiles_lead_back_to_the_image(name, tile):
    for mark in ("", "~2", "~1~3"):
        assert image_id(tile_id(name + mark, tile)) == name + mark
    assert tile_id(name, 0) == name


def test_memory_of_a_chunk_is_bounded_by_tiles(tmp_path):
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(png(picture(n, 512, 512)))
    rule, limit = DecodeRule(64, tiles=64), chunk_rows(64)
    tables = read(tmp_path, rule, chunk=100)
    assert [t.num_rows for t in tables] == [2, 2, 2]
    assert all(len(tiles_of(t)) <= 100 + 64 for t in tables)
    assert limit * 64 * 64 * 3 <= 16 * 2**20
