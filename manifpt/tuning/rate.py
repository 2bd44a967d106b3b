"""Images/s that one process attributes, from decoded pixels to attributions."""

import time
from collections.abc import Sequence
from statistics import median

from manifpt.artifacts.projection import decoding_of
from manifpt.attribution.crawl.stage import AttributeStage
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.engine import pipeline, pools, scaling
from manifpt.errors import ManifptError
from manifpt.images import Selection, plan, read_unit

IMAGES = 256
REPEATS = 3


def attribution_rate(model: str, inputs: Sequence[str]) -> float:
    """Return the median images/s of some repetitions over the first images of ``inputs``.

    All steps but reading and decoding, which do not depend on the model, in this process.
    """
    cpus = max(1, int(pools.capacity().get("CPU", 1.0)))
    pipeline.use_threads(scaling.threads_here(cpus))
    targets = trained_targets(TrainedAttributor.open(model), ()).values()
    projectors = [target.projector_alone() for target in targets]
    stage = AttributeStage(model, projectors)
    rule, sizes = decoding_of(projectors)
    for unit in plan(inputs):
        for table in read_unit(unit, rule, Selection(), IMAGES, sizes):
            good = table.filter(table["error"].is_null()).drop_columns(["error", "message"])
            if good.num_rows:
                seconds = []
                for _ in range(REPEATS + 1):
                    started = time.perf_counter()
                    stage.attributions(good)
                    seconds.append(time.perf_counter() - started)
                return float(good.num_rows / median(seconds[1:]))
    raise ManifptError("--input: no image could be decoded")
