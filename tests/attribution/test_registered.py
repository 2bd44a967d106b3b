"""A registered model is downloaded by the jobs, and never executed."""

from pathlib import Path

import handmade
import mlflow
import pytest

from manifpt.attribution.crawl import registered
from manifpt.attribution.model.trained import TrainedAttributor

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
