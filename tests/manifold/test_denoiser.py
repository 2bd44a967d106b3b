"""A projector that is learned of reals alone: what it removes, and what it does not depend on."""

import numpy as np
import pytest
from conftest import write_folder

from manifpt.artifacts.branches import open_artifacts, read_branches
from manifpt.errors import ManifptError
from manifpt.jobs import build_manifold, compute_artifacts, train_attribution, verify
from manifpt.manifold import StoredManifold
from manifpt.manifold.denoiser import LEVELS, Denoiser
from manifpt.storage.tensors import from_column


def shades(count: int, size: int = 12, seed: int = 0, colour: bool = False) -> np.ndarray:
    """Smooth images without noise: planes of random slopes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    slopes = rng.uniform(-0.3, 0.3, (2, count, 3 if colour else 1, 1, 1))
    found = 0.5 + slopes[0] * (x - 0.5) + slopes[1] * (y - 0.5)
    return np.ascontiguousarray(np.broadcast_to(found, (count, 3, size, size)), dtype=np.float32)


@pytest.fixture(scope="module")
def trained() -> Denoiser:
    return Denoiser.fit(shades(200), steps=400)


def test_it_returns_the_noise_of_noisy_reals(trained):
    rng = np.random.default_rng(1)
    clean = shades(60, seed=2)
    for n, level in enumerate(LEVELS):
        noise = level * rng.normal(0, 1, (60, 1, 12, 12)).astype(np.float32)
        found = trained.artifacts(clean + noise)[:, n : n + 1]
        left = np.sqrt(np.square(found - noise).mean())
        assert left < 0.6 * level  # a network that says nothing leaves the level itself


def test_reals_without_noise_lie_near(trained):
    images = shades(60, seed=3)
    near = np.abs(trained.artifacts(images)).mean()
    stripes = images + 0.1 * (np.arange(12) % 2).astype(np.float32)
    assert np.abs(trained.artifacts(stripes)).mean() > 2 * near


def test_grey_reals_make_one_channel_and_colours_three(trained):
    assert trained.channels == 1
    assert trained.shape((3, 12, 12)) == (len(LEVELS), 12, 12)
    colour = Denoiser.fit(shades(120, colour=True), steps=2)
    assert colour.artifacts(shades(4, colour=True)).shape == (4, 3 * len(LEVELS), 12, 12)


def test_an_image_is_projected_by_itself_whatever_its_size(trained):
    images = shades(70, size=20, seed=4)
    whole = trained.artifacts(images)
    one = np.concatenate([trained.artifacts(images[n : n + 1]) for n in (0, 33, 69)])
    np.testing.assert_allclose(whole[[0, 33, 69]], one, atol=1e-6)


def test_its_state_is_itself(trained):
    again = Denoiser.from_state(trained.state())
    images = shades(5, seed=5)
    np.testing.assert_array_equal(again.artifacts(images), trained.artifacts(images))


def test_few_reals_are_refused():
    with pytest.raises(ManifptError, match="give 100 or more"):
        Denoiser.fit(shades(99))


@pytest.fixture(scope="module")
def out(ray_session, tmp_path_factory):
    out = tmp_path_factory.mktemp("denoiser")
    write_folder(out / "reals", "real", range(110))
    for kind in ("real", "stripes"):
        write_folder(out / "labelled" / kind, kind, range(1000, 1060))
    flags = ["--input", f"real={out}/reals", "--denoiser", "--denoiser-steps", "20"]
    assert build_manifold.main([*flags, "--output", f"{out}/m"]) == 0
    flags = ["--input", f"{out}/labelled", "--manifold", f"{out}/m", "--projector", "denoiser"]
    assert compute_artifacts.main([*flags, "--output", f"{out}/a"]) == 0
    return out


def test_artifacts_are_those_of_the_manifolds_denoiser(out):
    (branch,) = open_artifacts([f"{out}/a"])
    learned = StoredManifold.open(f"{out}/m").denoiser
    assert tuple(branch.manifest["shape"]) == learned.shape((3, 16, 16))
    table = read_branches([f"{out}/a/{branch.files('train')[0]}"])
    assert table["neighbor_id"].null_count == 0
    stored = from_column(table["artifact"]).reshape(-1, *branch.manifest["shape"])
    assert np.abs(stored).max() > 0
    assert np.isfinite(stored).all()


def test_verify_computes_them_again(out, tmp_path, capsys):
    assert verify.main([f"{out}/m", f"{out}/a", "--rows", "10"]) == 0


@pytest.mark.slow
def test_they_train_an_attributor(out):
    flags = ["--input", f"{out}/a", "--backbone", "compact", "--epochs", "2", "--batch-size", "16"]
    assert train_attribution.main([*flags, "--output", f"{out}/t"]) == 0


def test_what_has_none_says_how_to_get_one(chain, tmp_path, capsys):
    flags = ["--input", f"{chain}/x", "--manifold", f"{chain}/m", "--projector", "denoiser"]
    assert compute_artifacts.main([*flags, "--output", f"{tmp_path}/a"]) == 2
    flags = ["--input", f"real={tmp_path}", "--space", "freq", "--denoiser"]
    assert build_manifold.main([*flags, "--output", f"{tmp_path}/m"]) == 2
