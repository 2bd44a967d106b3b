"""Attributors in the spaces of published methods, from images to predictions, without Ray."""

import numpy as np
import pytest

import manifpt
from manifpt.engine import session


def drawn(source: str, count: int, seed: int) -> np.ndarray:
    """Noise, in which each source has a fixed pattern, uint8 count x 16 x 16 x 3."""
    sources = ("real", "first", "second")
    patterns = np.random.default_rng(8).normal(0, 3, (3, 16, 16, 3))
    noise = np.random.default_rng([seed, sources.index(source)]).normal(0, 4, (count, 16, 16, 3))
    values = 128 + noise + patterns[sources.index(source)]
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("space", "vectors", "least"),
    [
        ("marra19", "correlation", 0.9),
        ("marra19", "lda", 0.9),
        ("selfdescription", "lda", 0.4),
        ("marra19", "knn", 0.7),
    ],
)
def test_an_attributor_is_fitted_and_says_what_is_unknown(
    space, vectors, least, tmp_path, monkeypatch
):
    monkeypatch.setattr(session, "start", lambda *_, **__: pytest.fail("started Ray"))
    names = ("real", "first", "second")
    images = {name: drawn(name, 300, 0) for name in names}
    attributor = manifpt.Attributor.fit(images, str(tmp_path / "a"), space=space, vectors=vectors)
    assert attributor.manifest["branches"][0]["space"]["name"] == space
    again = manifpt.Attributor.load(str(tmp_path / "a"))
    right = []
    for name in names:
        rows = again.predict(drawn(name, 30, 1))
        right += list(rows["prediction"] == name)
        assert rows["unknown_p"].between(0, 1).all()
    assert np.mean(right) >= least
