"""Computations of pages: samples, fingerprints, curves, intervals, colours."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import auc

from manifpt.attribution.unknown.open_set import auroc
from manifpt.evaluation.open_set_metrics import oscr
from manifpt.report.charts import curve_points
from manifpt.report.crawl_counts import domain_of, wilson
from manifpt.report.fingerprints import Fingerprints, power_spectra, radial, tree_of
from manifpt.report.page_pictures import Pictures, flattened, signed
from manifpt.report.rows import Strata, evenly_spread


@given(
    names=st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    order=st.randoms(use_true_random=False),
    cut=st.integers(0, 60),
)
def test_a_sample_does_not_depend_on_order_or_files(names, order, cut):
    rows = [{"id": f"{n}", "value": n} for n in range(len(names))]
    places = list(range(len(rows)))
    order.shuffle(places)
    whole, parts = Strata(3), Strata(3)
    whole.add(pa.Table.from_pylist(rows), names)
    for some in (places[:cut], places[cut:]):
        if some:
            parts.add(pa.Table.from_pylist([rows[n] for n in some]), [names[n] for n in some])
    assert parts.rows == whole.rows
    for name, kept in whole.rows.items():
        assert len(kept) == min(3, names.count(name))
        assert all(names[row["value"]] == name for row in kept)


def test_rows_of_one_id_are_sampled_once():
    strata, rows = Strata(3), [{"id": f"{n % 5}"} for n in range(40)]
    for start in range(0, 40, 9):
        strata.add(pa.Table.from_pylist(rows[start : start + 9]), ["x"] * len(rows[start:][:9]))
    assert len({row["id"] for row in strata.all}) == len(strata.all) == 3


def test_files_of_a_large_output_are_spread_over_it():
    files = [{"path": str(n), "rows": 100} for n in range(100)]
    assert evenly_spread(files, 10_000) == files
    some = evenly_spread(files, 500)
    assert [file["path"] for file in some] == ["0", "25", "50", "74", "99"]


def test_the_power_of_a_wave_is_in_the_ring_of_its_frequency():
    y = np.arange(32)
    wave = np.cos(2 * np.pi * 4 * y / 32)[:, None] * np.ones(32)
    rings = radial(power_spectra(wave[None])[0])
    assert rings.argmax() == 4  # of 16: 4 / 32 cycles per pixel
    assert power_spectra(wave[None]).sum() == pytest.approx(np.square(wave).sum())  # Parseval


def test_fingerprints_are_means_and_their_distances_those_of_numpy():
    rng = np.random.default_rng(0)
    artifacts = rng.normal(0, [1, 2, 3, 0], (90, 4)) + np.arange(90)[:, None] % 3 * [0, 1, 2, 0]
    sources = np.array(["a", "b", "c"])[np.arange(90) % 3]
    found = Fingerprints((4,))
    for start in range(0, 90, 17):
        found.add(artifacts[start : start + 17], sources[start : start + 17])
    means = {name: artifacts[sources == name].mean(0) for name in "abc"}
    for name, mean in means.items():
        np.testing.assert_allclose(found.means[name], mean)
    np.testing.assert_allclose(found.std, artifacts.std(0), atol=1e-9)
    names, distances = found.distances
    std = artifacts.std(0)[:3]
    gap = (means["a"][:3] - means["c"][:3]) / std
    assert names == ["a", "b", "c"]
    assert distances[0, 2] == pytest.approx(np.sqrt(np.square(gap).mean()))
    assert set(tree_of(distances, names)["ivl"]) == set(names)
    assert found.spectra == {}


def test_areas_under_curves_are_auroc_and_oscr():
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(0, 1, 4000), rng.normal(1.5, 1, 3000)
    right = rng.uniform(size=4000) < 0.8
    points = curve_points(known, unknown, right)
    assert auc(points["accepted"], points["known"]) == pytest.approx(
        auroc(known, unknown), abs=2e-3
    )
    area = auc(points["accepted"], points["classified"])
    assert area == pytest.approx(oscr(known, right, unknown), abs=2e-3)


@pytest.mark.parametrize(("count", "total"), [(0, 7), (3, 10), (950, 1000), (5, 5)])
def test_intervals_of_shares_are_wilsons(count, total):
    expected = binomtest(count, total).proportion_ci(method="wilson")
    assert wilson(count, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("uri", "domain"),
    [
        ("https://user@Images.Example:8080/a/b.png", "images.example"),
        ("s3://bucket/a/b.tar#c.png", "s3://bucket"),
        ("az://container/a/b.png", "az://container"),
        ("/data/site/a.tar#x/y.png", "site/a.tar"),
        ("/data/site/a.png", "data/site"),
        ("", "(others)"),
    ],
)
def test_domains(uri, domain):
    assert domain_of(uri) == domain


def test_colours_are_signed_and_on_one_scale():
    drawn = signed(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]), 1.0)[0].astype(int)
    assert (drawn[2] > 240).all()
    assert drawn[0].tolist() == drawn[1].tolist()
    assert drawn[1][2] > drawn[1][0]
    assert drawn[3][0] > drawn[3][2]


def test_pictures_stop_at_their_limit():
    pictures, pixels = Pictures(left=3000), np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    made = [pictures.uri(pixels.astype(np.uint8)) for _ in range(9)]
    assert made[0]
    assert made[-1] is None
    assert sum(len(uri) for uri in made if uri) <= 3000
    assert pictures.refused == made.count(None)


def test_vectors_become_mosaics_and_maps_the_mean_of_their_channels():
    assert flattened(np.arange(10.0)).shape == (3, 4)
    maps = np.stack([np.zeros((6, 6)), np.ones((6, 6)), np.full((6, 6), 2.0)])
    assert (flattened(maps) == 1).all()
