"""The attributor as an MLflow model: a table of image bytes in, the attributions table out.

This file is the model's code ("models from code"): nothing is pickled.
"""

import tempfile
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature, set_model
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image

from manifpt import outputs, session, storage
from manifpt.attribution.attribute import AttributeStage, trained_targets
from manifpt.attribution.attributor import SEEN, WEIGHTS, Attributor
from manifpt.images.read import Raw, images_table, row_of
from manifpt.manifold import Manifold
from manifpt.manifold.embed import other_sizes
from manifpt.manifold.placement import Replicated, plan_for

COLUMNS = ("status", "prediction", "probability", "neighbor_id", "distance", "error")


class AttributorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """Attributes images given as bytes; a broken one gets ``status`` quarantined and an error."""

    def load_context(self, context: Any) -> None:
        """Open the attributor in the model's own files; its manifold is where its manifest says."""
        folder = context.artifacts["attributor"]
        targets = trained_targets(Attributor.open(folder), ()).values()
        projectors = [t.projector(_searcher(t.manifold)) for t in targets]
        self.rule = projectors[0].rule
        self.sizes = other_sizes(self.rule, [projector.space for projector in projectors])
        self.stage = AttributeStage(folder, projectors)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return one row for each image of the column ``image`` (bytes), in order."""
        rows, pixels = [], []
        for number, data in enumerate(model_input["image"]):
            row, image = row_of(Raw(str(number), "", data), self.rule, self.sizes)
            rows.append(row)
            pixels.append(image)
        good = [i for i, row in enumerate(rows) if row["error"] is None]
        out = pd.DataFrame({name: [None] * len(rows) for name in COLUMNS}, dtype=object)
        out["status"] = ["quarantined" if row["error"] else "ok" for row in rows]
        out["error"] = [row["error"] for row in rows]
        if good:
            table = images_table([rows[i] for i in good], [pixels[i] for i in good], self.sizes)
            made = self.stage.attributions(table).select(list(COLUMNS[1:-1])).to_pandas()
            out.loc[good, list(COLUMNS[1:-1])] = made.to_numpy(dtype=object)
        for name in ("probability", "distance"):
            out[name] = out[name].astype(float)
        return out


def _searcher(manifold: Manifold | None) -> Replicated | None:
    """Return what searches a manifold in this process."""
    return Replicated(manifold.uri, plan_for(manifold, session.ANY_SEARCH)) if manifold else None


def log_model(uri: str, manifest: dict[str, Any]) -> None:
    """Log a finished attributor as an MLflow model of the active run."""
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(
                    DataType.double if n in {"probability", "distance"} else DataType.string,
                    n,
                    required=False,
                )
                for n in COLUMNS
            ]
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "attributor"
        local.mkdir()
        for name in (WEIGHTS, SEEN, outputs.MANIFEST):
            (local / name).write_bytes(storage.read_bytes(storage.join(uri, name)))
        mlflow.pyfunc.log_model(
            name="attributor",
            python_model=__file__,
            artifacts={"attributor": str(local)},
            signature=signature,
            input_example=pd.DataFrame(
                {"image": [_example(manifest["branches"][0]["decode"]["size"])]}
            ),
            pip_requirements=["manifpt"],
        )


def _example(size: int) -> bytes:
    import io

    sink = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 127, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


set_model(AttributorModel())
