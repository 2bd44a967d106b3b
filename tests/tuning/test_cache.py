"""The cache makes each thing once, and what it makes is what the jobs make."""

import pytest
from conftest import write_folder

from manifpt import outputs
from manifpt.artifacts.branches import read_branches
from manifpt.jobs import build_manifold, compute_artifacts
from manifpt.tuning.cache import Cache, sweep_images
from manifpt.tuning.search_space import DEFAULTS


@pytest.fixture(scope="module")
def images(ray_session, tmp_path_factory):
    root = tmp_path_factory.mktemp("cached")
    write_folder(root / "reals", "real", range(40))
    for kind in ("stripes", "blocks"):
        write_folder(root / "labelled" / kind, kind, range(500, 530))
    return sweep_images([f"{root}/reals"], [f"{root}/labelled"], ())


def settings(**given):
    return DEFAULTS.model_copy(update=given)


OTHERS = [
    settings(space="rgb+freq", metric="cosine", reals=20, projector="mean", neighbors=4),
    settings(space="freq", projector="none"),
    settings(space="image+rgb", projector="mean", neighbors=4),
]


@pytest.mark.parametrize(
    ("asked", "embeddings"),
    [
        ([settings(), settings(projector="mean", neighbors=4)], 1),
        pytest.param([settings(), *OTHERS], 2, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_embedded_twice(images, tmp_path, asked, embeddings):
    cache = Cache(str(tmp_path), images)
    made = [cache.artifacts(one) for one in asked]
    # 40 reals and 60 images, in each space with a manifold.
    assert sum(m.embedded for m in made) == embeddings * (40 + 60)
    again = [cache.artifacts(one) for one in reversed(asked)]
    assert all(not m.steps for m in again)
    assert [m.uris for m in reversed(again)] == [m.uris for m in made]
    # An option of one space leaves the others as they are.
    assert cache.artifacts(settings(freq_log=False)).steps == []


@pytest.mark.slow
def test_artifacts_are_those_of_the_jobs(images, tmp_path):
    cache = Cache(f"{tmp_path}/cache", images)
    (uri,) = cache.artifacts(settings(space="freq", projector="mean", neighbors=3)).uris
    flags = ["--input", *images.reals, "--space", "freq", "--output", f"{tmp_path}/m"]
    assert build_manifold.main(flags) == 0
    flags = ["--input", *images.labelled, "--manifold", f"{tmp_path}/m", "--projector", "mean"]
    assert compute_artifacts.main([*flags, "--neighbors", "3", "--output", f"{tmp_path}/a"]) == 0

    def rows(folder):
        manifest = outputs.require(folder, "artifacts", "artifacts")
        files = [f["path"] for f in manifest["files"]]
        tables = [read_branches([f"{folder}/{path}"]).to_pylist() for path in files]
        return sorted((row for table in tables for row in table), key=lambda row: row["id"])

    assert rows(uri) == rows(f"{tmp_path}/a")


@pytest.mark.slow
def test_what_fails_is_tried_again(images, tmp_path, monkeypatch):
    cache = Cache(str(tmp_path), images)
    monkeypatch.setattr("manifpt.tuning.cache.project_embeddings", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache.artifacts(settings())
    monkeypatch.undo()
    made = cache.artifacts(settings())
    assert made.embedded == 0  # it goes on where it was
    assert made.steps == ["artifacts rgb"]
