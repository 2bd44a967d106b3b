"""Plan jobs before they run: stages, bytes, hours, costs, wall time, requests, the bottleneck.

    manifpt plan --measure here.json --input IMAGES --model MODEL
    manifpt plan --measurements here.json --images 1e9 --real 1e6 --nodes 20 --cpus 16

The first command takes measurements on this machine, in one to three minutes; the second one plans
with them. docs/plan.md explains both.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
from manifpt.errors import ManifptError
from manifpt.tracking import Run

if TYPE_CHECKING:
    from manifpt.planning.measured import Measurements


class Config(JobConfig):
    """Options of plan."""

    measure: str | None = Field(
        None, description="measure on this machine, and write the measurements to this JSON file"
    )
    input: tuple[str, ...] = Field(
        (), description="with --measure: images like the future input; the first thousands are used"
    )
    model: str | None = Field(
        None, description="with --measure: an attributor with a manifold, from train_attribution"
    )
    manifold: tuple[str, ...] = Field(
        (),
        description="with --measure: present location of the attributor's manifolds, if they "
        "were moved",
    )
    measurements: str | None = Field(None, description="file that --measure wrote")
    images: float | None = Field(
        None, ge=1, description="number of images to attribute, such as 1e9"
    )
    real: float | None = Field(
        None,
        ge=1,
        description="number of reals in the manifold; if not given, the number that was measured",
    )
    unit: float | None = Field(
        None,
        ge=1,
        description="images per file of the input; if not given, the number that was measured",
    )
    workers: tuple[int, ...] = Field(
        (), description="numbers of worker processes to plan for; if not given, as many as fit"
    )
    nodes: int = Field(1, ge=1, description="number of machines in the cluster")
    cpus: int | None = Field(
        None,
        ge=1,
        description="CPUs that Ray counts on each machine; if not given, the number that was "
        "measured",
    )
    cores: int | None = Field(
        None,
        ge=1,
        description="physical cores of each machine, if Ray counts another number; if not "
        "given, --cpus",
    )
    gpus: int | None = Field(
        None, ge=0, description="GPUs of each machine; if not given, 1 if measured on a GPU, else 0"
    )
    memory: float | None = Field(
        None,
        gt=0,
        description="GiB of memory that Ray has on each machine (`ray status`); if not given, "
        "as measured",
    )
    bandwidth: float | None = Field(
        None, gt=0, description="MB/s between a node and storage; if not given, no limit"
    )
    price_storage_gb_month: float | None = Field(
        None, ge=0, description="price of storing a GB for a month"
    )
    price_requests: tuple[float, ...] = Field(
        (),
        max_length=2,
        description="price of 1,000 write requests, and of 1,000 read requests if it differs",
    )


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Measure, or read measurements; print the plans and return them."""
    from manifpt.planning import model, table
    from manifpt.planning.cluster import Cluster, Prices
    from manifpt.planning.measured import Measurements

    if (config.measure is None) == (config.measurements is None):
        raise ManifptError("--measurements: give the file of an earlier --measure, or --measure")
    if config.measure is not None:
        measured = _measured(config)
    else:
        measured = Measurements.read(str(config.measurements))
    tracked.document("measurements.json", measured.model_dump(mode="json"))
    if config.images is None and config.measure is None:
        raise ManifptError("--images: say how many are to be attributed")
    if config.unit is not None:
        sizes = measured.sizes.model_copy(update={"unit": config.unit})
        measured = measured.model_copy(update={"sizes": sizes})
    cpus = config.cpus or measured.cores
    cluster = Cluster(
        config.nodes,
        cpus,
        config.cores or (min(cpus, measured.cores) if config.cpus is None else cpus),
        int(measured.uses_gpu) if config.gpus is None else config.gpus,
        int(config.memory * 2**30) if config.memory else measured.memory,
        config.bandwidth * 1e6 if config.bandwidth else None,
    )
    if measured.uses_gpu != (cluster.gpus > 0):
        raise ManifptError(
            f"--gpus {cluster.gpus}: measured {'on a GPU' if measured.uses_gpu else 'without one'};"
            " measure on a node like those of the cluster"
        )
    prices = Prices(
        config.price_cpu_hour,
        config.price_gpu_hour,
        config.price_storage_gb_month,
        (config.price_requests[0], config.price_requests[-1]) if config.price_requests else None,
    )
    reals = int(config.real or measured.images.reals)
    workers = config.workers or (None,)
    plans = {
        "build_manifold": [model.plan_build_manifold(measured, reals, cluster, n) for n in workers]
    }
    if config.images is not None:
        images = int(config.images)
        plans["attribute"] = [
            model.plan_attribute(measured, images, reals, cluster, n) for n in workers
        ]
    for made in plans.values():
        print(table.plan_text(made, cluster, prices), end="\n\n", file=sys.stderr, flush=True)
    rows = [table.plan_row(plan, cluster, prices) for made in plans.values() for plan in made]
    return {"cluster": vars(cluster), "plans": rows}


def _measured(config: Config) -> "Measurements":
    from manifpt.planning.plan_calibration import measure_machine

    if not config.input or config.model is None:
        raise ManifptError("--measure: needs --input and --model; see --help")
    measured = measure_machine(config.input, config.model, config.manifold)
    measured.write(str(config.measure))
    return measured


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command; the tables are its output, and --json has all figures."""

    def command() -> None:
        # Measurements start Ray where they need it.
        job.execute("plan", Config, run, argv, __doc__, on_ray=False)

    return job.exit_code("plan", command)
