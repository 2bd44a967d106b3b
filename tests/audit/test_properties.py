"""Properties in the headers of files from several encoders."""

import io

import numpy as np
import pytest
from conftest import draw
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from manifpt.audit.properties import PROPERTIES, grey_levels, jpeg_quality, properties

PICTURE = Image.fromarray(draw("real", 0, 32))


def saved(image: Image.Image, format: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format, **options)
    return sink.getvalue()


@pytest.mark.parametrize("quality", [1, 10, 35, 50, 75, 90, 95, 100])
@pytest.mark.parametrize(("given", "named"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_a_jpeg_says_how_it_was_compressed(quality, given, named):
    found = properties(saved(PICTURE, "JPEG", quality=quality, subsampling=given))
    assert (found["format"], found["quality"], found["subsampling"]) == ("JPEG", quality, named)
    assert (found["width"], found["height"], found["mode"], found["bits"]) == (32, 32, "RGB", 8)


def test_unlike_encoders_differ_and_equal_ones_do_not():
    plain = saved(PICTURE, "JPEG", quality=80)
    other = Image.fromarray(draw("stripes", 3, 32))
    ways = [{"optimize": True}, {"progressive": True}, {"dpi": (300, 300)}, {"comment": b"by hand"}]
    unlike = [properties(saved(PICTURE, "JPEG", quality=80, **way)) for way in ways]
    first = properties(plain)
    assert properties(saved(other, "JPEG", quality=80))["encoder"] == first["encoder"]
    assert len({first["encoder"], *(found["encoder"] for found in unlike)}) == 5
    assert {found["tables"] for found in unlike} == {first["tables"]}
    assert unlike[3]["software"] == "by hand"
    levels = [properties(saved(PICTURE, "PNG", compress_level=n))["encoder"] for n in (1, 9)]
    assert levels[0] != levels[1]


def test_metadata_is_found():
    exif = Image.Exif()
    exif[0x0110] = "camera"
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "Painter <1>")
    png = properties(saved(PICTURE, "PNG", pnginfo=text, icc_profile=b"profile" * 20, exif=exif))
    assert (png["software"], png["exif"]) == ("Painter <1>", True)
    assert png["icc"] is not None
    jpeg = saved(PICTURE, "JPEG", exif=exif)
    signed = jpeg[:2] + b"\xff\xeb\x00\x10" + b"JP\0\0jumb c2pa" + b"\0" + jpeg[2:]
    assert properties(jpeg)["exif"]
    assert not properties(jpeg)["c2pa"]
    assert properties(signed)["c2pa"]


def test_depth_and_mode():
    deep = saved(Image.fromarray(np.full((8, 8), 40_000, np.uint16)), "PNG")
    assert properties(deep)["bits"] == 16
    one = properties(saved(PICTURE.convert("1"), "PNG"))
    assert (one["bits"], one["mode"]) == (1, "1")
    grey = properties(saved(PICTURE.convert("L"), "JPEG"))
    assert (grey["mode"], grey["subsampling"]) == ("L", "grey")


def test_webp_is_not_opened_but_its_kind_is_known():
    kinds = [properties(saved(PICTURE, "WEBP", lossless=way))["encoder"] for way in (True, False)]
    assert kinds == ["VP8L", "VP8 "]


@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]), st.data())
def test_hostile_headers_cost_their_properties_alone(junk, format, data):
    whole = saved(PICTURE, format)
    at = data.draw(st.integers(0, len(whole)))
    for broken in (junk, whole[:at], whole[:at] + junk, whole[:at] + junk + whole[at:]):
        found = properties(broken)
        assert set(found) == set(PROPERTIES)
        assert found["bytes"] == len(broken)


def test_quality_is_that_of_the_nearest_standard_table():
    assert jpeg_quality([1] * 64) == 100
    assert jpeg_quality([255] * 64) == 1


def test_grey_levels_are_those_of_the_channel_with_most():
    pixels = np.zeros((2, 4, 4, 3), np.uint8)
    pixels[0, :, :, 1] = np.arange(16).reshape(4, 4)
    assert grey_levels(pixels) == 16
    assert grey_levels(pixels[1]) == 1
