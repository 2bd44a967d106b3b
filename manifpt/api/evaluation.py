"""The metrics of an attributor on images whose sources are known."""

import tempfile
from collections.abc import Mapping

from manifpt.api.attributor import Attributor
from manifpt.api.given import Images, inputs_of
from manifpt.engine import pools
from manifpt.evaluation import evaluate as evaluation
from manifpt.evaluation.evaluation_format import EvaluationMetrics


def evaluate(
    attributor: Attributor, images: Mapping[str, Images] | str, *, keep_near: bool = False
) -> EvaluationMetrics:
    """Return the metrics of an attributor on images by source, those of the job ``evaluate``.

    Images that the attributor or its manifolds have seen are left out and counted, and so are
    images that look like one of training, unless ``keep_near``.

    Args:
        attributor: the attributor.
        images: {source: images}, see ``Images``; or a folder with a folder for each source. Images
            of other sources than the attributor's should be called unknown.
        keep_near: count images that look like one of training.

    """
    with tempfile.TemporaryDirectory(prefix="manifpt-") as folder:
        inputs = inputs_of(images, f"{folder}/images")
        return evaluation.evaluate(
            inputs,
            attributor.uri,
            f"{folder}/evaluation",
            evaluation.EvaluationSettings(keep_near=keep_near),
            manifolds=attributor.manifolds,
            demand=pools.HERE,
        )
