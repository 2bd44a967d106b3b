"""Circles and spheres, whose geodesics and intrinsic means are known."""

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_folder

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.jobs import build_manifold, compute_artifacts, verify
from manifpt.manifold.geometry import Geometry
from manifpt.manifold.riemannian import centres_of_mass, energy, geodesic, length

SLOW = pytest.mark.slow
# Intrinsic dimension, ambient dimension, radial and tangential noise of the reals, seed.
ROUND = [
    pytest.param(1, 2, 0.0, 0, id="circle", marks=SLOW),
    pytest.param(1, 20, 0.0, 1, id="circle in 20 dimensions", marks=SLOW),
    pytest.param(1, 20, 0.02, 2, id="noisy circle in 20 dimensions", marks=SLOW),
    pytest.param(2, 3, 0.0, 3, id="sphere"),
    pytest.param(2, 20, 0.0, 4, id="sphere in 20 dimensions", marks=SLOW),
]


CASES = [pytest.param(one.values, id=one.id, marks=one.marks) for one in ROUND]


def unit(points):
    return points / np.linalg.norm(points, axis=-1, keepdims=True)


@cache
def learned(intrinsic, ambient, noise, seed):
    """A geometry of random reals of the unit sphere, and the isometry that embeds it."""
    rng = np.random.default_rng(seed)
    plane = intrinsic + 1
    isometry = np.linalg.qr(rng.standard_normal((ambient, plane)))[0].T
    points = unit(rng.standard_normal((600 * intrinsic, plane)))
    reals = (points + noise * rng.standard_normal(points.shape)) @ isometry
    return Geometry.fit(reals.astype(np.float32), plane, seed), isometry


def spread(intrinsic, angle, count=12, k=8):
    """Points within ``angle`` of random middles, count x k x (intrinsic + 1), one at its edge."""
    rng = np.random.default_rng(99)
    middle = unit(rng.standard_normal((count, 1, intrinsic + 1)))
    tangent = rng.standard_normal((count, k, intrinsic + 1))
    tangent = unit(tangent - (tangent * middle).sum(-1, keepdims=True) * middle)
    angles = angle * rng.uniform(0, 1, (count, k, 1))
    angles[:, 0] = angle
    return np.cos(angles) * middle + np.sin(angles) * tangent


def intrinsic_mean(points):
    """The Karcher mean on the unit sphere by its closed exponential map and logarithm."""
    mean = unit(points.mean(1))
    for _ in range(200):
        cosine = (points * mean[:, None]).sum(-1, keepdims=True)
        angle = np.arccos(np.clip(cosine, -1, 1))
        step = ((points - cosine * mean[:, None]) / np.sinc(angle / np.pi)).mean(1)
        size = np.linalg.norm(step, axis=1, keepdims=True)
        mean = np.cos(size) * mean + np.sinc(size / np.pi) * step
    return mean


def mean_distance(points, others):
    return np.linalg.norm(points - others, axis=-1).mean()


def off_manifold(points):
    return np.abs(np.linalg.norm(points, axis=-1) - 1).mean()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("angle", [1.0, pytest.param(1.3, marks=SLOW)])
def test_the_centre_lies_nearer_to_the_manifold_and_to_the_intrinsic_mean(case, angle):
    geometry, isometry = learned(*case)
    points = spread(case[0], angle)
    star = centres_of_mass(geometry, (points @ isometry).astype(np.float32))
    straight = points.mean(1)
    assert off_manifold(star) < 0.4 * off_manifold(straight)
    truth = intrinsic_mean(points)
    assert mean_distance(star, truth @ isometry) < 0.7 * mean_distance(straight, truth)


@pytest.mark.parametrize("case", CASES)
def test_a_geodesic_is_as_long_as_the_arc(case):
    geometry, isometry = learned(*case)
    rng = np.random.default_rng(5)
    start = unit(rng.standard_normal((10, case[0] + 1)))
    across = rng.standard_normal(start.shape)
    across = unit(across - (across * start).sum(-1, keepdims=True) * start)
    arc = 2.0
    end = np.cos(arc) * start + np.sin(arc) * across
    ends = [geometry.encode(torch.from_numpy((p @ isometry).astype(np.float32)))
            for p in (start, end)]  # fmt: skip
    found = length(geometry, geodesic(geometry, *ends, segments=16))
    chord = 2 * math.sin(arc / 2)
    assert abs(found.mean() - arc) < 0.3 * (arc - chord)
    straight = ends[0] + torch.linspace(0, 1, 17)[:, None, None] * (ends[1] - ends[0])
    assert (found < length(geometry, straight.transpose(0, 1))).all()


def test_the_deviation_grows_away_from_the_data():
    geometry, isometry = learned(*ROUND[1].values)
    angle = torch.linspace(0, 6, 30)
    circle = torch.stack([angle.cos(), angle.sin()], 1) @ torch.from_numpy(isometry).float()
    codes = geometry.encode(circle)
    # Outwards, and through the hole inwards.
    for radii in ([1, 1.3, 1.6, 2, 4, 8], [1, 0.8, 0.6, 0.4, 0.2]):
        norms = torch.stack([geometry.deviation(r * codes).norm(dim=1).mean() for r in radii])
        assert (norms.diff() > 0).all()
        assert norms[-1] > 5 * norms[0]


def test_the_metric_and_energy_are_those_of_the_decoder():
    geometry, _ = learned(*ROUND[3].values)
    latents = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()

    def decoded(z):
        return torch.cat([geometry.mean(z), geometry.deviation(z)], -1)

    steps = 1e-6 * torch.eye(3).double()
    columns = [(decoded(latents + h) - decoded(latents - h)) / 2e-6 for h in steps]
    jacobian = torch.stack(columns, 2)
    torch.testing.assert_close(
        geometry.metric(latents), jacobian.mT @ jacobian, rtol=1e-4, atol=1e-5
    )
    moves = decoded(latents).diff(dim=0).square().sum()
    torch.testing.assert_close(energy(geometry, latents), 4 * moves, rtol=1e-5, atol=0)


def test_a_fit_is_repeatable_and_survives_storage(tmp_path):
    reals = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    state = Geometry.fit(reals, 3, seed=1, steps=50).state()
    again = Geometry.fit(reals, 3, seed=1, steps=50).state()
    other = Geometry.fit(reals, 3, seed=2, steps=50).state()
    torch.save(state, tmp_path / "geometry.pt")
    loaded = torch.load(tmp_path / "geometry.pt", weights_only=True)
    assert loaded["sizes"] == {"dimension": 6, "latent": 3, "centres": 200}
    for name, value in state["weights"].items():
        assert torch.equal(value, again["weights"][name])
        assert torch.equal(value, loaded["weights"][name])
    assert not torch.equal(state["weights"]["head.weight"], other["weights"]["head.weight"])
    neighbours = reals[:40].reshape(5, 8, 6)
    stars = [centres_of_mass(Geometry.from_state(one), neighbours) for one in (state, loaded)]
    assert np.array_equal(*stars)


def test_each_image_stands_alone_and_identical_neighbours_are_themselves():
    geometry, isometry = learned(*ROUND[1].values)
    neighbours = (spread(1, 1.0, count=4) @ isometry).astype(np.float32)
    neighbours[0] = neighbours[0, :1]
    whole = centres_of_mass(geometry, neighbours)
    alone = np.concatenate([centres_of_mass(geometry, one[None]) for one in neighbours])
    np.testing.assert_allclose(whole, alone, atol=1e-6)
    np.testing.assert_allclose(whole[0], neighbours[0, 0], atol=0.02)


def test_a_few_reals_are_refused():
    with pytest.raises(ManifptError, match="99 reals are too few"):
        Geometry.fit(np.zeros((99, 4), np.float32))


@SLOW
def test_a_manifold_with_a_geometry_projects_by_it(built, tmp_path, capsys):
    """From the options to artifacts that are certified; without a geometry it is one line."""
    reals = f"{Path(built).parent}/reals"
    images = write_folder(tmp_path / "stripes", "stripes", range(12))
    flags = ["--input", f"stripes={images}", "--projector", "riemannian", "--neighbors", "4"]
    assert compute_artifacts.main([*flags, "--manifold", built, "--output", f"{tmp_path}/no"]) == 2
    assert "build it with --geometry" in capsys.readouterr().err
    build = ["--input", f"real={reals}", "--geometry", "--output", f"{tmp_path}/m"]
    assert build_manifold.main(build) == 0
    target = ["--manifold", f"{tmp_path}/m", "--output", f"{tmp_path}/a"]
    assert compute_artifacts.main([*flags, *target]) == 0
    made = storage.read_json(f"{tmp_path}/a/manifest.json")["projection"]
    assert (made["kind"], made["neighbours"], len(made["geometry"])) == ("riemannian", 4, 64)
    assert verify.main([f"{tmp_path}/m", f"{tmp_path}/a", "--rows", "12"]) == 0
