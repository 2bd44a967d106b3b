"""The file of measurements, computed from timed steps and from the runs of two jobs."""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import pyarrow as pa

from manifpt.artifacts.projection import decoding_of, rows_of_chunk
from manifpt.attribution.crawl.registered import AttributorSource, opened_model
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.engine import chunk_work, pipeline, pools, session
from manifpt.engine.columns import ColumnTypes, GivenColumns
from manifpt.errors import ManifptError
from manifpt.manifold.placement import plan_for
from manifpt.manifold.stored import StoredManifold
from manifpt.nets.device import device_and_precision
from manifpt.outputs.provenance import environment
from manifpt.planning.cluster import Cluster
from manifpt.planning.measure import (
    ACTOR,
    FEWEST,
    MOST,
    READER,
    ROWS_TIMED,
    RUN_SECONDS,
    CommandRun,
    Steps,
    command,
    input_sample,
    processor_seconds,
    reals_of,
    serial,
)
from manifpt.planning.measured import Fixed, ImageSeconds, Measurements, Serial, Sizes
from manifpt.planning.model import plan_attribute, plan_build_manifold
from manifpt.spaces.learned import Learned
from manifpt.throughput.timing import in_a_process

DRIVER_CHUNKS = 200
LEAST_CONTENTION = 0.5  # a faster run was not measured well


def measure_machine(
    inputs: Sequence[str], model: str, manifolds: Sequence[str] = ()
) -> Measurements:
    """Measure on this machine; ``inputs`` are images like those to come, ``model`` an attributor.

    It writes into a temporary folder alone, and its runs into an MLflow store there.
    """
    cores = os.cpu_count() or 1
    with opened_model(model, manifolds) as source, tempfile.TemporaryDirectory() as folder:
        attributor = TrainedAttributor.open(source.attributor)
        targets = trained_targets(attributor, source.manifolds)
        reals = [target.manifold for target in targets.values() if target.manifold]
        most = max((one.manifest["reals"] for one in reals), default=0)
        if not reals:
            raise ManifptError(f"--model {model}: has no manifold, and nothing to plan; give one")
        projectors = [target.projector_alone() for target in targets.values()]
        steps = Steps(source.attributor, projectors)
        sample = input_sample(inputs, decoding_of(projectors)[0], MOST)
        read, table = steps.read(sample.raws[:ROWS_TIMED])
        work = steps.work(table, cores)
        each = sum(read.values()) + sum(work[name] for name in ("embed", "search", "classify"))
        count = min(len(sample.raws), max(FEWEST, min(MOST, int(RUN_SECONDS * cores / each))))
        stored = sample.tars(f"{folder}/images", count)
        driver = in_a_process("the driver", _driver, f"{folder}/driver")
        chunk_driver, memory, gpus = driver
        places = [one.uri for one in reals]
        actor = processor_seconds(ACTOR, source.attributor, *places)
        attributed, built = _runs(folder, source, reals[0])
        manifold = StoredManifold.open(f"{folder}/manifold")
        parts = len(attributed.parts)
        draft = Measurements(
            machine={**environment(cores)},
            cores=cores,
            memory=memory,
            uses_gpu=gpus > 0 and device_and_precision()[0] == "cuda",
            exact=all(plan_for(one, pools.ANY_SEARCH).exact for one in reals),
            sizes=Sizes(
                image=stored,
                attribution=attributed.bytes / count,
                real=sum(one.real_bytes for one in reals),
                real_stored=manifold.dimension * 4,
                unit=sample.unit,
                chunk=rows_of_chunk(projectors),
            ),
            images=ImageSeconds(fetch=sample.fetch, reals=most, **read, **work),
            fixed=_fixed(actor),
            serial=Serial(chunk=chunk_driver, **serial(f"{folder}/attributions")),
            reals=reals_of(manifold),
        )
        here = Cluster(1, cores, cores, gpus, memory)
        return fitted(draft, here, attributed, built, count, count / parts)


def _runs(
    folder: str, source: AttributorSource, manifold: StoredManifold
) -> tuple[CommandRun, CommandRun]:
    """Attribute the images of a folder, and build a manifold of them, as users do."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    flags = ["--input", f"{folder}/images", "--model", source.attributor]
    if source.manifolds:
        flags += ["--manifold", *source.manifolds]
    attributed = command("attribute", f"{folder}/attributions", *flags, environment=store)
    flags = ["--input", f"real={folder}/images", *space_flags(manifold)]
    built = command("build_manifold", f"{folder}/manifold", *flags, environment=store)
    return attributed, built


def _fixed(actor: float) -> Fixed:
    """Return the start-up of an actor and a reader; the rest is fitted to runs later."""
    reader = processor_seconds(READER)
    return Fixed(start=0, actor=actor, reader=reader, end=0, build_end=0, contention=1)


def fitted(
    draft: Measurements,
    here: Cluster,
    attributed: CommandRun,
    built: CommandRun,
    images: int,
    unit: float,
) -> Measurements:
    """Return the measurements with the further time of two runs of ``images`` in files of ``unit``.

    The parts of ``attributed`` show the seconds of its images, which are longer than those of the
    steps alone: processes contend for memory, caches and cores.
    """
    one = draft.model_copy(update={"sizes": draft.sizes.model_copy(update={"unit": unit})})
    plan = plan_attribute(one, images, draft.images.reals, here)
    parts = len(attributed.parts)
    between = attributed.parts[-1] - attributed.parts[0]
    expected = plan.parts["images"] * (parts - 1) / parts
    contention = max(LEAST_CONTENTION, between / expected) if parts > 1 else 1.0
    fixed = draft.fixed.model_copy(update={"contention": contention})
    one = one.model_copy(update={"fixed": fixed})
    plan = plan_attribute(one, images, draft.images.reals, here)
    first = plan.parts["start"] + plan.parts["images"] / parts
    start = attributed.parts[0] - attributed.began - first
    done = sum(plan.parts[name] for name in ("ids", "copies", "check"))
    end = max(0.0, attributed.ended - attributed.parts[-1] - done)
    fixed = fixed.model_copy(update={"start": start, "end": end})
    one = one.model_copy(update={"fixed": fixed})
    building = plan_build_manifold(one, images, here).seconds
    build_end = max(0.0, built.ended - built.began - building)
    return draft.model_copy(update={"fixed": fixed.model_copy(update={"build_end": build_end})})


def space_flags(manifold: StoredManifold) -> list[str]:
    """Return the options of ``build_manifold`` that give a manifold of the same space."""
    space, rule = manifold.space, manifold.rule
    name = space.name
    flags = ["--space", name, "--image-size", str(rule.size), "--filter", rule.filter]
    flags += ["--metric", manifold.manifest["metric"]]
    if not isinstance(space, Learned):
        return [*flags, "--tiles", str(rule.tiles)]
    flags += [f"--{name}-network", space.backbone, f"--{name}-weights", space.weights]
    flags += ["--network-size", str(space.network_size), "--precision", space.precision]
    flags += ["--layer", space.layer] if space.layer else []
    return [*flags, "--pooled" if space.pooled else "--no-pooled"]


class _OneRow:
    gives = GivenColumns({"id": pa.string()}, "the table", "give it an id")

    def __call__(self, spec: str) -> Iterator[pa.Table]:
        for number in range(DRIVER_CHUNKS):
            yield pa.table({"id": [f"{spec}-{number}"]})


class _Nothing:
    takes: ClassVar[ColumnTypes] = {"id": pa.string()}
    gives: ClassVar[Mapping[str, ColumnTypes]] = {"rows": takes}

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        return chunk_work.Result({"rows": table})


def _driver(output: str) -> tuple[float, int, int]:
    """Return the driver's processor time for a chunk; and the memory and GPUs that Ray has here."""
    import ray

    session.start()
    has = pools.capacity()
    pool = pools.pool(pools.Demand(1, 0), uses_gpu=False)
    began = time.process_time()
    pipeline.run("driver", ["a"], _OneRow(), _Nothing, output, pool)
    used = time.process_time() - began
    ray.shutdown()
    return used / DRIVER_CHUNKS, int(has.get("memory", 2**33)), int(has.get("GPU", 0))
