"""The attributor as an MLflow model: a table of image bytes in, a table of attributions out.

This file is the model's code ("models from code"): nothing is pickled, and no Ray is started. From
Python, with or without a table of images at once::

    model = mlflow.pyfunc.load_model("models:/NAME@champion")
    model.predict(pandas.DataFrame({"image": [data]}))  # data: the bytes of a PNG, JPEG, ...

Over Parquet of any size, in one process a core; manifpt attribute does the same with parts that
survive, a quarantine and counts::

    class Attribute:
        def __init__(self):
            self.model = mlflow.pyfunc.load_model("models:/NAME@champion")

        def __call__(self, batch):
            return self.model.predict(batch[["image"]])

    ray.data.read_parquet(URI, columns=["image"]).map_batches(
        Attribute, batch_format="pandas", batch_size=256, compute=ray.data.ActorPoolStrategy(size=3)
    )

Over HTTP, by ``mlflow models serve``, the bytes are base64::

    {"dataframe_split": {"columns": ["image"], "data": [["iVBORw0KGgo..."]]}}
"""

import base64
import binascii
import io
from collections.abc import Iterator
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import set_model
from PIL import Image

from manifpt import outputs
from manifpt.artifacts.projection import decoding_of
from manifpt.attribution.crawl.registered import ATTRIBUTOR, MANIFOLDS, included
from manifpt.attribution.crawl.stage import AttributeStage
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.attribution.unknown.decision import Rule
from manifpt.errors import ManifptError
from manifpt.images.raw import Raw
from manifpt.images.read import chunk_rows, images_table, row_of
from manifpt.images.sandbox import decode_all

# The columns of an image that could be decoded, in order.
FOUND = (
    "prediction", "probability", "decision", "unknown_score", "unknown_p",
    "neighbor_id", "distance", "percentile",
)  # fmt: skip
COLUMNS = ("status", *FOUND, "error")
SMALLEST = 32  # pixels of the first image
# The values of an image by column.
Row = dict[str, str | float | None]
NUMBERS = frozenset({"probability", "unknown_score", "unknown_p", "distance", "percentile"})


class AttributorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """Attributes images given as bytes; a broken one gets ``status`` quarantined and an error."""

    def load_context(self, context: Any) -> None:
        """Open the attributor in the model's own files, and its manifolds there or at their URIs.

        A manifold that is gone, or another by now, raises. An image of noise is attributed once, so
        that the decoder, the network and the manifolds are ready when the first request comes.
        """
        folder = context.artifacts[ATTRIBUTOR]
        attributor = TrainedAttributor.open(folder)
        where = _checked(attributor, context.artifacts.get(MANIFOLDS))
        targets = trained_targets(attributor, where).values()
        projectors = [target.projector_alone() for target in targets]
        self.rule, self.sizes = decoding_of(projectors)
        self.stage = AttributeStage(folder, projectors)
        self._attributed([_noise(max(self.rule.size, *self.sizes, SMALLEST))])

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return one row for each image of the column ``image`` (bytes), in order.

        ``params`` may have ``sure`` and ``false_rejection``, see ``decision.Rule``. A missing value
        is None, since JSON has no NaN.
        """
        self.stage.rule = Rule(**(params or {}))
        images = list(model_input["image"])
        step = max(1, chunk_rows(max(self.rule.size, *self.sizes, 1)) // max(1, self.rule.tiles))
        rows: list[Row] = []
        for start in range(0, len(images), step):
            rows += self._attributed(images[start : start + step])
        return pd.DataFrame(
            {name: pd.Series([row[name] for row in rows], dtype=object) for name in COLUMNS}
        )

    def _attributed(self, images: list[bytes | str | None]) -> list[Row]:
        """Return the rows of the images that are decoded at once.

        They are decoded in a separate process: an image that ends it costs its row.
        """
        raws = [Raw(str(n), "", _bytes(data)) for n, data in enumerate(images)]
        given = [(raw, raw.data or b"") for raw in raws]
        decoded = [
            row_of(raw, found, self.rule, self.sizes)
            for raw, found in decode_all(given, self.rule, self.sizes)
        ]
        good = [one for one in decoded if one[0]["error"] is None]
        found: Iterator[Row] = iter(())
        if good:
            rows, pixels = map(list, zip(*good, strict=True))
            made = self.stage.attributions(images_table(rows, pixels, self.sizes))
            found = iter(made.select(list(FOUND)).to_pylist())
        return [
            {**dict.fromkeys(FOUND), "status": "quarantined", "error": str(row["error"])}
            if row["error"]
            else {**next(found), "status": "ok", "error": None}
            for row, _ in decoded
        ]


def _noise(size: int) -> bytes:
    """Return an image of noise of size x size pixels as the bytes of a PNG."""
    sink = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def _bytes(data: bytes | str | None) -> bytes:
    """Return the bytes of an image that may still be base64, which no image's own bytes are.

    MLflow decodes it in ``dataframe_split`` and ``dataframe_records``, but not in ``inputs``.
    """
    raw = data.encode() if isinstance(data, str) else bytes(data or b"")
    try:
        return base64.b64decode(raw.translate(None, b"\r\n"), validate=True)
    except binascii.Error:
        return raw


def _checked(attributor: TrainedAttributor, folder: str | None) -> list[str]:
    """Return the places of the manifolds, in the model's ``folder`` or at the attributor's URIs."""
    branches = attributor.branches
    where = [branch["manifold"] for branch in branches if branch["manifold"]]
    needed = [branch["manifold_sha256"] for branch in branches if branch["manifold_sha256"]]
    if folder is not None:
        where = included(folder, attributor.manifest)
    for uri, sha256 in zip(where, needed, strict=True):
        found = (outputs.read(uri) or {}).get("content_sha256")
        if found != sha256:
            state = f"is now {found[:12]}" if found else "is gone"
            raise ManifptError(
                f"manifold {uri}: {state}, and the model needs {sha256[:12]}; "
                "put that one there, or register the model again with --moved or "
                "--manifold include"
            )
    return where


set_model(AttributorModel())
