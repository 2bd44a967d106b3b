"""A comparison of plans with measured jobs: seconds of whole commands, by size and workers.

The measurements for plans are taken on one sample, at Ray's own number of CPUs; the jobs run on
other numbers of images, with logical CPUs for their workers.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from manifpt.artifacts.compute import ArtifactRecipe
from manifpt.attribution.model.train import train_attributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.engine import session
from manifpt.manifold.build import build_manifold
from manifpt.planning import model
from manifpt.planning.cluster import Cluster
from manifpt.planning.measure import command
from manifpt.planning.measured import Measurements
from manifpt.planning.plan_calibration import measure_machine
from manifpt.throughput.attribution_speed import write_png_tar
from manifpt.throughput.photographs import crops, generated, photographs
from manifpt.throughput.timing import in_a_process

SIDE, TAR_IMAGES = 28, 500
REALS, TRAINING = 4000, 600
SIZES, WORKERS = (500, 1000, 2000, 4000, 8000), (1, 2, 3, 4)
QUICK = (500, 2000), (1, 2)
WITHIN = 0.25


def prepare(folder: str, images: int, inputs: Sequence[str]) -> None:
    """Write tars of crops of photographs, and train an attributor on others for one epoch."""
    photos = photographs(inputs)
    for kind, count in (("crawl", images), ("reals", REALS)):
        Path(folder, kind).mkdir(parents=True)
        for number in range(-(-count // TAR_IMAGES)):
            seed, seen = number + 1000 * (kind == "reals"), kind == "reals"
            some = crops(photos, SIDE, TAR_IMAGES, seed, seen=seen)
            write_png_tar(f"{folder}/{kind}/{number:05d}.tar", some)
    reals = crops(photos, SIDE, TRAINING, 10**6, seen=True)
    write_png_tar(f"{folder}/real.tar", reals)
    write_png_tar(f"{folder}/pca.tar", generated(reals, TRAINING, 3))
    in_a_process("preparation", _train, folder)


def _train(folder: str) -> None:
    import ray

    session.start()
    build_manifold([f"real={folder}/reals"], f"{folder}/manifold")
    train_attributor(
        [f"{name}={folder}/{name}.tar" for name in ("real", "pca")],
        f"{folder}/model",
        TrainingRecipe(epochs=1),
        recipe=ArtifactRecipe(manifolds=[f"{folder}/manifold"]),
    )
    ray.shutdown()


def measured_of(folder: str) -> Measurements:
    """Return the measurements of this machine, for the images of ``prepare``."""
    return measure_machine([f"{folder}/crawl"], f"{folder}/model")


class PlannedRun(TypedDict):
    """A run beside its plan: seconds as planned and as measured, and when its parts came."""

    job: str
    images: int
    workers: int
    planned: float
    measured: float
    parts: dict[str, float]
    first_part: float | None
    last_part: float | None
    load: float
    at: str


class PlanError(NamedTuple):
    """The medians of a plan and of its runs, and the error of the plan relative to the run."""

    job: str
    images: int
    workers: int
    planned: float
    measured: float
    error: float


def measure(
    folder: str, sizes: Sequence[int], workers: Sequence[int], repeats: int
) -> Iterator[PlannedRun]:
    """Yield a row a run: seconds as planned and as measured.

    Each repetition takes new measurements, so that plans and runs are of the same minutes.
    """
    cores = os.cpu_count() or 1
    cpus = max(workers) + 1
    here = {
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": cpus}),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    for turn in range(repeats):
        measured = measured_of(folder)
        measured.write(f"{folder}/measured-{turn}.json")
        sized = measured.sizes.model_copy(update={"unit": TAR_IMAGES})
        measured = measured.model_copy(update={"sizes": sized})
        cluster = Cluster(1, cpus, cores, 0, measured.memory)
        for images in sizes:
            tars = [f"{folder}/crawl/{n:05d}.tar" for n in range(-(-images // TAR_IMAGES))]
            for count in workers:
                made = model.plan_attribute(measured, images, measured.images.reals, cluster, count)
                output = f"{folder}/attributions-{images}-{count}-{turn}"
                flags = ["--input", *tars, "--model", f"{folder}/model"]
                yield _row(made, "attribute", output, flags, here)
            made = model.plan_build_manifold(measured, images, cluster, 1)
            output = f"{folder}/manifold-{images}-{turn}"
            reals = [f"real={tar}" for tar in tars]
            yield _row(made, "build_manifold", output, ["--input", *reals], here)


def _row(
    made: model.JobPlan, job: str, output: str, flags: list[str], here: dict[str, str]
) -> PlannedRun:
    load = os.getloadavg()[0]
    ran = command(job, output, *flags, "--num-actors", str(made.workers), environment=here)
    seconds = ran.ended - ran.began
    parts = dict(made.parts)
    first = ran.parts[0] - ran.began if ran.parts else None
    return {
        "job": made.job,
        "images": made.images,
        "workers": made.workers,
        "planned": made.seconds,
        "measured": seconds,
        "parts": parts,
        "first_part": first,
        "last_part": ran.parts[-1] - ran.began if ran.parts else None,
        "load": load,
        "at": time.strftime("%H:%M:%S"),
    }


def compared(rows: Sequence[PlannedRun]) -> list[PlanError]:
    """Return a row a job, size and number of workers: medians over repetitions, and the error."""
    found = []
    for key in dict.fromkeys((row["job"], row["images"], row["workers"]) for row in rows):
        same = [row for row in rows if (row["job"], row["images"], row["workers"]) == key]
        planned = float(np.median([row["planned"] for row in same]))
        measured = float(np.median([row["measured"] for row in same]))
        job, images, workers = key
        found.append(PlanError(job, images, workers, planned, measured, planned / measured - 1))
    return found


def table(rows: Sequence[PlanError]) -> str:
    """Return the rows of ``compared`` as text, with the number of errors within WITHIN."""
    lines = [
        f"{'job':<16}{'images':>8}{'workers':>9}{'planned s':>11}{'measured s':>12}{'error':>8}"
    ]
    lines += [
        f"{r.job:<16}{r.images:>8}{r.workers:>9}{r.planned:>11.1f}"
        f"{r.measured:>12.1f}{r.error:>8.0%}"
        for r in rows
    ]
    errors = [abs(row.error) for row in rows]
    good = sum(error <= WITHIN for error in errors)
    lines.append(f"{good} of {len(rows)} within {WITHIN:.0%}, the largest {max(errors):.0%}")
    return "\n".join(lines)
