"""Tiles that decided: the planted one is the strongest, and its outline lies where it is."""

import re

import handmade
import handmade_outputs
import numpy as np
import pyarrow as pa
import pytest
from conftest import draw, folder_of
from PIL import Image
from planted import ALL, SIZE, planted, striped
from test_pages import check_harmless

from manifpt.attribution.model import trained
from manifpt.engine.pools import HERE
from manifpt.images import DecodeRule
from manifpt.images.tiles import MOST
from manifpt.manifold.build import ManifoldSettings, build_manifold
from manifpt.report import examples as stored
from manifpt.report.crawl_page import crawl_page
from manifpt.report.evaluation_page import PageOptions
from manifpt.report.explanation import Explainer, explanation, opened_image
from manifpt.report.explanation_page import explanation_page, explanation_text
from manifpt.report.page_pictures import Pictures
from manifpt.report.tile_overlay import (
    TiledImage,
    assembled,
    overlay,
    picture_rule,
    tile_evidence,
    whole_pictures,
)
from manifpt.storage import tensors


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return handmade.attributor(tmp_path_factory.mktemp("tiled") / "model", tiles=ALL)


@pytest.fixture
def explainer(model, monkeypatch):
    monkeypatch.setattr(trained, "network_outputs", striped)
    return Explainer.open(model)


def boxes(page: bytes) -> list[dict[str, float]]:
    """The outlines on a page, from the first drawn to the last."""
    found = re.findall(r'class="tile(?: guess)?" title="([^"]*)" style="([^"]*)"', page.decode())
    parse = (re.findall(r"([-a-z]+):([\d.]+)", style) for _, style in found)
    return [{name: float(value) for name, value in pairs} for pairs in parse]


@pytest.mark.parametrize(("x", "y"), [(0, 0), (32, 16), (48, 32)])
def test_the_planted_tile_is_the_strongest_and_outlined_where_it_is(explainer, tmp_path, x, y):
    uri = str(tmp_path / "<b>.png")
    Image.fromarray(planted(x, y)).save(uri)
    table = opened_image(uri, explainer)
    found = explanation(explainer, table, [])
    evidence = found["tile_evidence"]
    assert len(evidence) == ALL
    assert (evidence[0]["x"], evidence[0]["y"]) == (x, y)
    assert evidence[0]["support"] > 0.5
    assert {one["support"] for one in evidence[1:]} == {0.0}
    assert f"{x}, {y}" in explanation_text(found)
    page = explanation_page(explainer, table, found)
    drawn = boxes(page)
    assert len(drawn) == ALL
    strongest = max(drawn, key=lambda box: box["--s"])
    assert strongest == drawn[-1]
    assert strongest["left"] == pytest.approx(100 * x / 64, abs=1e-3)
    assert strongest["top"] == pytest.approx(100 * y / 48, abs=1e-3)
    assert strongest["width"] == pytest.approx(25)
    text = page.decode()
    assert f"x {x}, y {y}, probability" in text
    assert "(a guess) or less" in text
    assert "<b>" not in text.partition("<h1")[2].partition("</h1>")[0]


def test_the_image_has_the_mean_of_its_tiles_log_probabilities(explainer, tmp_path):
    rng = np.random.default_rng(0)
    uri = str(tmp_path / "noise.png")
    pixels = np.repeat(rng.uniform(0, 40, (48, 64, 1)), 3, 2) * np.linspace(0, 5, 64)[None, :, None]
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(uri)
    table = opened_image(uri, explainer)
    (verdict,) = explainer.verdicts(table)
    made = explainer.projected(table)
    each = [explainer.tiles(made, [name])[0] for name in explainer.attributor.classes]
    means = np.array([np.mean([one["log_probability"] for one in tiles]) for tiles in each])
    pooled = np.exp(means) / np.exp(means).sum()
    assert verdict["probability"] == pytest.approx(pooled.max(), rel=1e-5)
    deciding = verdict["deciding_tiles"]
    tiles = each[int(pooled.argmax())]
    assert [(one["x"], one["y"]) for one in tiles[:3]] == [(t["x"], t["y"]) for t in deciding]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_file_that_says_it_is_turned_has_its_outline_on_the_right_spot(
    explainer, tmp_path, orientation
):
    """Few tiles are looked at, and all of the grid is in the picture, upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(planted(64, 16, 160, 96))
    turns = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    turn = turns.get(orientation, Image.Transpose.ROTATE_270)
    stored_as = image if turn is None else image.transpose(turn)
    uri = str(tmp_path / "turned.png")
    stored_as.save(uri, exif=exif)
    table = opened_image(uri, explainer)
    rule = explainer.projectors[0].rule
    own = {uri: TiledImage(np.zeros((1, SIZE, SIZE, 3), np.uint8), [(0, 0)], *stored_as.size)}
    whole = whole_pictures(own, rule, 160)[uri]
    assert (whole.left, whole.top, whole.width, whole.height) == (0, 0, 160, 96)
    red = whole.pixels[..., 0].astype(int) - whole.pixels[..., 2]
    assert red[18:30, 66:78].min() > 50
    assert abs(red[40:, :60]).max() < 20
    assert table["tile_places"][0].as_py()[0].keys() == {"x", "y"}


def test_nearest_reals_are_those_of_the_strongest_tile(tmp_path, monkeypatch):
    """By brute force: the reals that are nearest to the planted tile, which is not the first."""
    monkeypatch.setattr(trained, "network_outputs", striped)
    settings = ManifoldSettings(image_size=SIZE, tiles=ALL)
    reals = folder_of(tmp_path / "reals", range(12))
    build_manifold([reals], f"{tmp_path}/m", settings=settings, demand=HERE)
    explainer = Explainer.open(handmade.attributor(tmp_path / "model", f"{tmp_path}/m"))
    uri, image = str(tmp_path / "image.png"), planted(32, 16)
    Image.fromarray(image).save(uri)
    found = explanation(explainer, opened_image(uri, explainer), [])
    gaps = image[16 : 16 + SIZE, 32 : 32 + SIZE] / 255 - np.stack(
        [draw("real", n) / 255 for n in range(12)]
    )
    wanted = sorted(np.sqrt(np.square(gaps).sum((1, 2, 3))))[:5]
    (rows,) = found["nearest_reals"].values()
    assert [row["distance"] for row in rows] == pytest.approx(wanted, rel=1e-4)
    assert "of the tile at 32, 16\n" in explanation_text(found)


def test_examples_of_a_crawl_have_their_outlines(model, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "network_outputs", striped)
    crawl = handmade_outputs.crawl(tmp_path, model, handmade.CLASSES, 12, 48)
    page = crawl_page(crawl, PageOptions())
    check_harmless(page, 6)
    text = page.decode()
    count = text.count('class="outlined ')
    assert 0 < count <= 12
    assert len(boxes(page)) == 9 * count
    assert text.count("(a guess) or less") == 1
    assert text.count("The image with 9 tiles outlined. The strongest for") == count


def test_examples_of_an_evaluation_show_their_strongest_tile(explainer, tmp_path):
    """Artifacts are the images themselves; x* is not drawn, and x is the planted tile."""
    uri = str(tmp_path / "image.png")
    Image.fromarray(planted(32, 16)).save(uri)
    table = opened_image(uri, explainer)
    (one,) = explainer.projected(table)
    rows = one.rows.set_column(2, "source", pa.array(["stripes"] * ALL))
    kinds = {"neighbor_id": pa.string(), "distance": pa.float64(), "percentile": pa.float64()}
    for name, kind in (kinds | {"in_manifold": pa.bool_()}).items():
        rows = rows.append_column(name, pa.array(one.columns[name], kind))
    rows = rows.append_column("artifact", tensors.to_column(one.artifacts))
    body = explainer.attributor.branches[0] | {"classes": {}}
    place = str(tmp_path / "artifacts")
    handmade_outputs.published(place, "artifacts", body, {"test/000000-000000.parquet": rows})
    row = {"id": uri, "source": "stripes", "prediction": "stripes"}
    shown = stored.Examples([place], (), [row], explainer.attributor.uri)
    (entry,) = shown.by_source(Pictures(), lambda _: "right")["stripes"]
    assert entry["tiles"]["evidence"][0]["tile"] == 6
    assert entry["tiles"]["boxes"][-1]["says"].startswith("x 32, y 16: stripes ")
    seen = shown._seen["image"][uri]
    assert seen.place == (32, 16)
    without = stored.Examples([place], (), [row])
    (entry,) = without.by_source(Pictures(), lambda _: "right")["stripes"]
    assert entry["tiles"] is None


@pytest.mark.parametrize(
    ("width", "height", "size"), [(4096, 4096, 16), (1000, 700, 64), (20000, 40, 16), (64, 64, 64)]
)
def test_the_picture_of_a_large_image_takes_few_tiles(width, height, size):
    rule = picture_rule(width, height, DecodeRule(size, tiles=8))
    across, down = width // rule.size, height // rule.size
    assert rule.size % size == 0
    assert min(across, down) >= 1
    assert across * down <= MOST or 2 * rule.size > height
    assert rule.tiles == MOST


def test_what_has_no_tile_is_grey_and_pictures_end_at_their_limit():
    tile = np.full((4, 4, 3), 200, np.uint8)
    whole = assembled([([tile, tile], [(8, 16), (16, 24)])], 100)
    assert (whole.left, whole.top, whole.width, whole.height) == (8, 16, 12, 12)
    assert whole.pixels[0, 0, 0] == 200
    assert whole.pixels[0, 11, 0] == 128
    evidence = tile_evidence(np.log([0.2, 0.9]), [(8, 16), (16, 24)], 4)
    assert [one["tile"] for one in evidence] == [1, 0]
    assert evidence[1]["support"] == 0.0
    drawn = overlay(evidence, 4, whole, "gan", Pictures(), 100)
    assert drawn["boxes"][-1]["left"] == pytest.approx(100 * 8 / 12)
    assert overlay(evidence[:1], 4, whole, "gan", Pictures(), 100) is None
    few = Pictures(left=10)
    assert overlay(evidence, 4, whole, "gan", few, 100) is None
    assert few.refused == 1


def test_a_small_image_has_no_outlines(explainer, tmp_path):
    uri = str(tmp_path / "small.png")
    Image.fromarray(draw("stripes", 1, SIZE)).save(uri)
    table = opened_image(uri, explainer)
    page = explanation_page(explainer, table, explanation(explainer, table, []))
    assert boxes(page) == []
    assert "Tiles that decided" not in page.decode()
