"""The Python interface: the same numbers as the jobs, from images of any kind."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from conftest import draw, mobilenet, write_folder
from handmade import attributor as handmade_attributor
from PIL import Image

import manifpt
from manifpt import ManifptError
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.attribution.crawl.attribute import attribute
from manifpt.engine import pools
from manifpt.manifold.projector import projection_of
from manifpt.spaces import SpaceSettings, make_space

NUMBERS = range(1000, 1012)


@pytest.fixture(scope="module")
def reals(corpus) -> str:
    return f"{corpus}/manifold"


@pytest.fixture(scope="module")
def fitted(reals) -> manifpt.Manifold:
    return manifpt.Manifold.fit(reals, space="rgb")


def arrays(kind: str, numbers: range = NUMBERS) -> np.ndarray:
    return np.stack([draw(kind, number) for number in numbers])


def table_of(folder: str, *names: str) -> pd.DataFrame:
    files = [str(path) for name in names for path in (Path(folder) / name).glob("*.parquet")]
    return ds.dataset(files).to_table().to_pandas()


def test_import_is_light_and_lists_its_names():
    code = "import manifpt, sys; print(*sorted(sys.modules)); print(*dir(manifpt))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, names = (set(line.split()) for line in done.stdout.splitlines())
    assert not {"ray", "torch", "mlflow", "faiss", "numpy", "pandas", "pyarrow"} & modules
    assert set(manifpt.__all__) <= names
    for name in manifpt.__all__:
        assert getattr(manifpt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = manifpt.nothing


def test_vectors_of_pixels_are_the_pixels_whatever_holds_them(tmp_path):
    images = arrays("stripes")
    folder = write_folder(tmp_path / "stripes", "stripes", NUMBERS)
    files = sorted(folder.iterdir())
    expected = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    pil = [Image.fromarray(image) for image in images]
    encoded = [path.read_bytes() for path in files]
    for given in (images, list(images), pil, encoded, files, folder, f"{folder}/*.png"):
        np.testing.assert_array_equal(manifpt.embed(given, "rgb"), expected)
    grey = images[..., 0]
    repeated = np.repeat(grey[:, None], 3, axis=1) / 255
    for given in (grey, grey[..., None]):
        np.testing.assert_array_equal(manifpt.embed(given), repeated.astype(np.float32))
    space = manifpt.space("freq", 16, eps=0.5)
    assert space.card() == make_space("freq", 16, SpaceSettings(eps=0.5)).card()
    np.testing.assert_array_equal(manifpt.embed(images, space), space.embed(images))


def test_artifacts_are_differences_to_the_nearest_real_by_brute_force(fitted):
    images = arrays("blocks")
    reals = arrays("real", range(60)).transpose(0, 3, 1, 2).reshape(60, -1) / 255
    x = images.transpose(0, 3, 1, 2).reshape(len(images), -1) / 255
    distance = np.linalg.norm(x[:, None] - reals, axis=2)
    best = distance.argmin(1)
    nearest = fitted.nearest(images)
    assert nearest["neighbor_id"].tolist() == [f"{number:04d}.png" for number in best]
    np.testing.assert_allclose(nearest["distance"], distance.min(1), rtol=1e-6)
    found = fitted.artifacts(images)
    assert found.shape == (len(images), 3, 16, 16)
    np.testing.assert_allclose(found.reshape(x.shape), x - reals[best], atol=1e-6)
    of_arrays = manifpt.Manifold.fit(arrays("real", range(60)))
    assert of_arrays.nearest(images)["neighbor_id"].tolist() == [f"images/{n}" for n in best]
    np.testing.assert_array_equal(of_arrays.artifacts(images), found)
    seen = fitted.nearest(arrays("real", range(2)))
    assert seen["in_manifold"].all()
    assert (seen["distance"] > 0).all()


def test_a_manifold_of_fit_and_its_artifacts_are_those_of_the_jobs(chain, corpus, tmp_path):
    named = {"real": f"{corpus}/manifold"}
    loaded = manifpt.Manifold.load(f"{chain}/m")
    rows = table_of(f"{chain}/a", "train", "test").head(40)
    found = loaded.artifacts(rows["uri"].tolist())
    np.testing.assert_array_equal(found.reshape(40, -1), np.stack(rows["artifact"].tolist()))
    nearest = loaded.nearest(rows["uri"].tolist())
    for name in ("neighbor_id", "distance", "percentile", "in_manifold"):
        assert nearest[name].tolist() == rows[name].tolist()
    again = manifpt.Manifold.fit(f"real={named['real']}", uri=f"{tmp_path}/m", shards=2)
    assert again.sha256 == loaded.sha256


@pytest.mark.parametrize("projector", ["nearest", "tangent"])
def test_a_saved_manifold_opens_in_the_jobs(fitted, corpus, tmp_path, projector):
    saved = fitted.save(f"{tmp_path}/m")
    assert saved.sha256 == fitted.sha256 == fitted.save(f"{tmp_path}/m").sha256
    images, how = f"{corpus}/labelled/stripes", projection_of(projector, None, 0.1)
    recipe = ArtifactRecipe(manifolds=[saved.uri], projection=how)
    compute_artifacts([images], f"{tmp_path}/a", recipe, demand=pools.HERE)
    rows = table_of(f"{tmp_path}/a", "train", "validation", "test").sort_values("id")
    found = saved.artifacts(images, projector)
    np.testing.assert_array_equal(found.reshape(60, -1), np.stack(rows["artifact"].tolist()))


def test_another_manifold_is_never_written_over(fitted, tmp_path):
    fitted.save(f"{tmp_path}/m")
    with pytest.raises(ManifptError, match="holds another manifold"):
        manifpt.Manifold.fit(arrays("blocks")).save(f"{tmp_path}/m")


def test_predictions_are_the_rows_of_attribute(fitted, tmp_path):
    manifold = fitted.save(f"{tmp_path}/m")
    model = handmade_attributor(tmp_path / "model", manifold.uri)
    folder = write_folder(tmp_path / "images", "stripes", NUMBERS)
    (folder / "1004x.png").write_bytes(b"no image")
    attribute([str(folder)], model, f"{tmp_path}/v", demand=pools.HERE)
    job = table_of(f"{tmp_path}/v", "attributions").set_index("id")
    attributor = manifpt.Attributor.load(model)
    found = attributor.predict(folder)
    assert found["id"].tolist() == sorted(path.name for path in folder.iterdir())
    broken = found[found["status"] == "quarantined"]
    assert broken[["id", "error"]].values.tolist() == [["1004x.png", "unknown_format"]]
    good = found[found["status"] == "ok"].set_index("id")
    pd.testing.assert_frame_equal(good[job.columns], job, check_dtype=False)
    again = attributor.predict(arrays("stripes"))
    same = ["prediction", "probability", "decision", "neighbor_id", "distance", "pixel_sha256"]
    pd.testing.assert_frame_equal(again[same], good[same].reset_index(drop=True))
    assert set(attributor.predict(arrays("stripes"), sure=1.0)["decision"]) == {"unsure"}


def test_a_dataset_of_ray_gives_a_dataset(ray_session, fitted, tmp_path):
    import ray.data

    images = arrays("stripes")
    rows = [{"image": image, "name": str(n)} for n, image in enumerate(images)]
    manifold = fitted.save(f"{tmp_path}/m")
    made = manifold.artifacts(ray.data.from_items(rows)).take_all()
    made.sort(key=lambda row: int(row["name"]))
    assert set(made[0]) == {"name", "artifact"}
    found = np.stack([row["artifact"] for row in made])
    np.testing.assert_array_equal(found, manifold.artifacts(images))


@pytest.mark.slow  # the notebook trains one, too
def test_a_trained_attributor_tells_sources_apart_without_ray(corpus, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda *_a, **_k: pytest.fail("Ray is not needed"))
    monkeypatch.setattr(pools, "capacity", lambda: pytest.fail("no cluster is needed"))
    network = {"sl_network": "mobilenet_v2", "sl_weights": mobilenet(), "network_size": 32}
    manifold = manifpt.Manifold.fit(f"{corpus}/manifold", "sl", uri=f"{tmp_path}/m", **network)
    images = {kind: f"{corpus}/labelled/{kind}" for kind in ("real", "stripes", "blocks")}
    attributor = manifpt.Attributor.fit(images, f"{tmp_path}/t", manifold=manifold)
    metrics = manifpt.evaluate(attributor, images)
    assert metrics["accuracy"] > 0.8
    assert metrics["left_out"]["seen"] > 100
    found = attributor.predict(arrays("stripes", range(5000, 5020)))
    assert (found["prediction"] == "stripes").mean() > 0.8
    assert not found["in_training"].any()


def test_files_that_reveal_their_class_are_trained_on_where_accepted_alone(tmp_path):
    jpegs = []
    for image in arrays("real", range(40)):
        sink = io.BytesIO()
        Image.fromarray(image).save(sink, "JPEG")
        jpegs.append(sink.getvalue())
    images = {"real": jpegs, "stripes": arrays("stripes", range(40))}
    with pytest.raises(ManifptError, match="the file property format reveals"):
        manifpt.Attributor.fit(images, f"{tmp_path}/t", space="residual")
    found = manifpt.Attributor.fit(images, f"{tmp_path}/t", space="residual", accept_biased=True)
    assert found.manifest["audit"]["verdict"] == "fail"


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 16, 16, 3)), "numbers are float64; give uint8"),
        (np.zeros((16, 16, 3), np.uint8), r"image\[None\]"),
        (np.zeros((0, 16, 16, 3), np.uint8), "there are none"),
        ([], "there are none"),
        ([1, 2], "int is no kind of image"),
        (7, "int is no kind of images"),
        ("/no/such/folder", "no such file or folder"),
        ([b"no image"], "none of 1 images could be decoded"),
        ([b"no image", np.zeros((16, 16), np.uint8)], "0 can't be decoded .unknown_format"),
    ],
)
def test_bad_images_are_one_line_with_a_remedy(images, words):
    with pytest.raises(ManifptError, match=words) as caught:
        manifpt.embed(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: manifpt.embed(arrays("real"), "clip"), "choose one of rgb"),
        (lambda m: manifpt.space("freq", 16, epsilon=1), "epsilon: is no option of a space"),
        (lambda m: m.artifacts(arrays("real"), "closest"), "choose one of nearest"),
        (lambda m: manifpt.Manifold.fit(arrays("real"), "image"), "has no manifold"),
        (lambda m: manifpt.Manifold.load("/no/such"), "no finished"),
        (lambda m: manifpt.Attributor.load("/no/such"), "no finished"),
        (lambda m: manifpt.Attributor.fit({"a": "x"}, "t", manifold=m), r"manifold.save\(uri\)"),
        (lambda m: manifpt.Attributor.fit({"no name": arrays("real")}, "t", space="image"),
         "no name of a source"),
        (lambda m: manifpt.Attributor.fit({}, "t", space="image", stepz=3), "stepz: no option"),
    ],
)  # fmt: skip
def test_bad_arguments_are_one_line_with_a_remedy(fitted, call, words):
    with pytest.raises(ManifptError, match=words) as caught:
        call(fitted)
    assert "\n" not in str(caught.value)
