"""A registered model is downloaded by the jobs and from Python, and never executed."""

import gc
import shutil
from pathlib import Path

import handmade
import mlflow
import pandas as pd
import pytest
from conftest import labelled, png

import manifpt
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.attribution.crawl import registered
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.engine import pools
from manifpt.jobs import register

CODE = """
from pathlib import Path

import mlflow

Path({mark!r}).touch()


class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        Path({mark!r}).touch()

    def predict(self, context, model_input, params=None):
        return model_input


mlflow.models.set_model(Model())
"""


@pytest.fixture
def malicious(tmp_path) -> Path:
    """Register a whole attributor whose model's code leaves a mark; return where."""
    mark, script = tmp_path / "ran", tmp_path / "code.py"
    script.write_text(CODE.format(mark=str(mark)))
    artifacts = {registered.ATTRIBUTOR: handmade.attributor(tmp_path / "attributor")}
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="model", python_model=str(script), artifacts=artifacts, pip_requirements=[]
        )
    version = mlflow.register_model(info.model_uri, "malicious").version
    mlflow.MlflowClient().set_registered_model_alias("malicious", "champion", version)
    mark.unlink()  # logging runs the code, too
    return mark


def test_jobs_run_no_code_of_a_registry(malicious, tmp_path):
    with registered.opened_model("models:/malicious@champion") as source:
        kept = source.kept(str(tmp_path / "output"))
        attributor = TrainedAttributor.open(kept.attributor)
    assert attributor.ready is not None
    assert attributor.open_set is None
    assert not malicious.exists()
    # MLflow's own ways do, as SECURITY.md says.
    mlflow.pyfunc.load_model("models:/malicious@champion")
    assert malicious.exists()


SAME = ["status", "prediction", "probability", "decision", "neighbor_id", "distance", "error"]


@pytest.fixture(scope="module")
def champion(corpus, tmp_path_factory) -> pd.DataFrame:
    """Register an attributor with its manifold, remove both; return what it said of `pictures`."""
    folder = tmp_path_factory.mktemp("champion")
    manifpt.Manifold.fit(f"{corpus}/manifold", uri=f"{folder}/m")
    recipe = ArtifactRecipe([f"{folder}/m"])
    compute_artifacts(labelled(corpus), f"{folder}/a", recipe, demand=pools.HERE)
    model = handmade.untrained(f"{folder}/a", f"{folder}/t")
    expected = manifpt.Attributor.load(model).predict(pictures())
    assert register.main(["--model", model, "--name", "python", "--alias", "first"]) == 0
    shutil.rmtree(folder)
    return expected


def pictures() -> list[bytes]:
    return [*(png("stripes", number) for number in range(7)), b"no image"]


@pytest.mark.slow
def test_a_registered_attributor_is_loaded_by_its_name_from_python(champion):
    attributor = manifpt.Attributor.load("models:/python@first")
    assert attributor.classes == handmade.CLASSES
    pd.testing.assert_frame_equal(attributor.predict(pictures()), champion)
    with pytest.raises(manifpt.ManifptError, match="register it by manifpt register") as caught:
        manifpt.Attributor.load("models:/python@second")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_it_predicts_a_dataset_of_ray_that_is_read_when_nobody_holds_it(ray_session, champion):
    import ray.data

    rows = [{"image": data, "name": str(n)} for n, data in enumerate(pictures())]
    dataset = ray.data.from_items(rows, override_num_blocks=2)  # the second has the broken one
    predicted = manifpt.Attributor.load("models:/python@first").predict(dataset)
    gc.collect()
    found = pd.DataFrame(predicted.take_all())
    found = found.sort_values("name", ignore_index=True)
    assert found["name"].tolist() == [row["name"] for row in rows]
    assert "image" not in found
    pd.testing.assert_frame_equal(found[SAME], champion[SAME], check_dtype=False)
