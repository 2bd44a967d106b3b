import io

import numpy as np
import pytest
from PIL import Image, features

from manifpt.images.decode import ERRORS, DecodeError, DecodeRule, decode

RULE = DecodeRule(8)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_modes_become_rgb_by_the_rule(mode, colour, expected):
    found = decode(encoded(Image.new(mode, (8, 8), colour)), RULE)
    assert found.pixels.shape == (8, 8, 3)
    assert tuple(found.pixels[3, 3]) == expected


def test_palette_sixteen_bit_cmyk_and_float():
    palette = Image.new("RGB", (8, 8), (200, 10, 0)).quantize(4)
    assert tuple(decode(encoded(palette), RULE).pixels[0, 0]) == (200, 10, 0)
    deep = Image.fromarray(np.full((8, 8), 257 * 77, np.uint16))
    assert tuple(decode(encoded(deep), RULE).pixels[0, 0]) == (77, 77, 77)
    cmyk = Image.new("CMYK", (8, 8), (0, 0, 0, 255))
    assert decode(encoded(cmyk, "JPEG"), RULE).pixels.max() < 8
    unit = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    assert decode(encoded(unit, "TIFF"), RULE).pixels[0, 0, 0] in (127, 128)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(decode(data, RULE).pixels[0, 0]) == (255, 0, 0)


def test_frames_behind_the_first_are_not_looked_at():
    frames = [Image.fromarray(np.full((8, 8), n, np.uint8)) for n in range(200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    spoilt = data[:1200] + b"\xff" * 1000
    assert (decode(spoilt, RULE).pixels == decode(data, RULE).pixels).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF"])
def test_formats_are_known_by_their_content(format):
    if format == "HEIF":
        pytest.importorskip("pillow_heif")
    elif format in {"WEBP", "AVIF"} and not features.check(format.lower()):
        pytest.skip(f"this Pillow has no {format}")
    data = encoded(Image.new("RGB", (64, 48), (200, 100, 50)), format)
    found = decode(data, RULE)
    assert (found.format, found.width, found.height) == (format, 64, 48)
    assert np.abs(found.pixels.astype(int) - (200, 100, 50)).max() < 12


@pytest.mark.parametrize(("kind", "scale"), [(np.uint16, 65535), (np.int32, 65535), ("f4", 1)])
def test_deep_images_of_many_rows_are_scaled_as_a_whole(kind, scale):
    values = (np.linspace(0, 1, 700)[:, None] * np.ones((1, 8)) * scale).astype(kind)
    data = encoded(Image.fromarray(values), "TIFF")
    whole = np.rint(values.astype(float) * 255 if scale == 1 else values / 257)
    found = decode(data, RULE).pixels  # the centre of the height
    assert (found[:, :, 0] == whole[346:354]).all()


def test_limits_of_cost_are_no_part_of_a_card():
    card = DecodeRule(8).card()
    assert card == DecodeRule(8, max_seconds=1, max_memory=10**9).card()
    assert set(card) == {"size", "filter", "max_bytes", "max_pixels", "decoder"}  # as ever
    assert DecodeRule.from_card(card) == DecodeRule(8)


def test_orientation_is_applied():
    image = Image.new("RGB", (8, 8))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    assert decode(encoded(image, exif=exif), RULE).pixels[7, 7].min() == 255


def test_an_image_of_the_right_size_is_left_alone_and_others_are_cropped_to_the_centre():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (decode(encoded(Image.fromarray(pixels)), RULE).pixels == pixels).all()
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    assert decode(encoded(Image.fromarray(wide)), RULE).pixels.min() == 255


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"hello, this is no image", "unknown_format"),
        (bytes(b ^ (n == 30) for n, b in enumerate(encoded(Image.new("L", (9, 9))))), "corrupt"),
        (encoded(Image.effect_noise((64, 64), 50))[:900], "truncated"),
        (b"x" * (2**16 + 1), "too_many_bytes"),
        (encoded(Image.new("1", (300, 300))), "too_many_pixels"),
    ],
)
def test_broken_images_get_a_code(data, code):
    rule = DecodeRule(8, max_bytes=2**16, max_pixels=2**16)
    with pytest.raises(DecodeError) as error:
        decode(data, rule)
    assert error.value.code == code
    assert code in ERRORS
