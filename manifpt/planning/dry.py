"""Dry runs: the work of a job on this cluster, without doing it or writing anything."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from manifpt import outputs, storage
from manifpt.attribution.crawl.registered import opened_model
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.engine import pools, scaling
from manifpt.engine.bill import hourly
from manifpt.errors import ManifptError
from manifpt.images import Selection, parquet
from manifpt.images.container import BrokenError
from manifpt.images.sources import AS_FOUND, MANIFOLD_REALS, REAL, Unit
from manifpt.images.units import units
from manifpt.manifold.placement import place_all
from manifpt.manifold.stored import StoredManifold, open_manifolds
from manifpt.planning import model
from manifpt.planning.cluster import Cluster
from manifpt.planning.measured import Measurements
from manifpt.spaces.space import LEARNED

READING = ("fetch", "decode", "table")
STAGES = {
    "build_manifold": (*READING, "embed", "gather", "calibrate", "held-out"),
    "append": (*READING, "embed", "gather", "held-out"),
    "compute_artifacts": (*READING, "embed", "search", "write"),
    "train_attribution": ("audit", *READING, "embed", "search", "write", "train", "validate"),
    "extend": (*READING, "embed", "search", "write", "fit", "validate"),
    "evaluate": (*READING, "embed", "search", "classify", "write", "metrics"),
    "attribute": (*READING, "embed", "search", "classify", "write", "ids", "copies", "check"),
}
# Stages for inputs that are outputs of a job: a manifold, embeddings or artifacts.
STAGES_OF_MADE = {
    "build_manifold": ("gather", "calibrate", "held-out"),
    "compute_artifacts": ("search", "write"),
    "train_attribution": ("audit", "train", "validate"),
    "evaluate": ("classify", "write", "metrics"),
}
PLANNED: dict[str, Callable[..., model.JobPlan]] = {
    "build_manifold": model.plan_build_manifold,
    "attribute": model.plan_attribute,
}


class GivenInputs(TypedDict):
    """The inputs of a job: kinds of outputs, or of units of images, and the numbers of both.

    ``images`` is None if they can be counted only by reading, as for tars.
    """

    kinds: list[str] | dict[str, int]
    images: int | None
    units: NotRequired[int]
    bytes: NotRequired[int]


def dry_run(job: str, config: Any) -> dict[str, object]:
    """Return the inputs of a job, its stages, processes and cost, and the places of manifolds."""
    inputs = [*getattr(config, "input", ()), *getattr(config, "add", ())]
    made = [found for text in inputs if (found := _made(text))]
    of_reals = job in ("build_manifold", "append")
    selection = MANIFOLD_REALS if of_reals else Selection()
    how: dict[str, Any] = {"source": REAL} if of_reals else {"labelled": job != "attribute"}
    how["reading"] = getattr(config, "reading", None) or getattr(config, "labels", AS_FOUND)
    found = _outputs(made) if len(made) == len(inputs) else _images(inputs, selection, how)
    reals = _manifolds(config)
    gpu = job not in {"build_manifold", "append", "compute_artifacts"} or _learned(config, reals)
    pool = pools.pool(config.demand, uses_gpu=gpu)
    where = []
    if reals and not of_reals:
        search = getattr(config, "search_demand", pools.ANY_SEARCH)
        placements, pool = place_all(reals, search, pool)
        where = [f"{m.space.name}: {p}" for m, p in zip(reals, placements, strict=True)]
    return {
        "job": job,
        "dry_run": True,
        "inputs": found,
        "stages": list((STAGES_OF_MADE if made else STAGES).get(job, ())),
        "processes": vars(pool),
        "manifolds": where,
        "cost": _cost(job, config, found["images"], reals),
        "output": config.output,
    }


def _cost(
    job: str, config: Any, images: int | None, reals: Sequence[StoredManifold]
) -> dict[str, float | None]:
    """Return the cost of nodes at the given prices, and of the job if there are measurements."""
    if config.measurements and job not in PLANNED:
        raise ManifptError(f"--measurements: {' and '.join(PLANNED)} can be planned; leave it out")
    most = pools.capacity()
    found: dict[str, float | None] = {"max_cost": config.max_cost}
    if config.prices:
        hour = hourly([most], config.prices)
        found |= {"nodes_an_hour": hourly(scaling.nodes_up(), config.prices), "most_an_hour": hour}
        if config.max_cost and hour:
            found["hours_of_max_cost"] = config.max_cost / hour
    if config.measurements and images:
        measured = Measurements.read(config.measurements)
        count = max((one.manifest["reals"] for one in reals), default=measured.images.reals)
        sizes = (images, count) if job == "attribute" else (images,)
        plan = PLANNED[job](measured, *sizes, _cluster(measured, most), config.num_actors)
        found["seconds"] = plan.seconds
        if config.prices:
            found["estimate"] = hour * plan.seconds / 3600
    return found


def _cluster(measured: Measurements, most: dict[str, float]) -> Cluster:
    """Return the nodes that are up, or the number like them that the cluster may grow to."""
    up = scaling.nodes_up()
    cpus = scaling.node_cpus() if up else int(most.get("CPU", 1))
    nodes = max(1, round(most.get("CPU", 1) / cpus))
    memory = int(most.get("memory", measured.memory * nodes) / nodes)
    gpus = int(most.get("GPU", 0) / nodes)
    return Cluster(nodes, cpus, cpus, gpus, memory)


def _made(text: str) -> Any:
    """Return the manifest of an input that is an output of a job."""
    uri = text if storage.is_remote(text) else text.rpartition("=")[2]
    return outputs.read(storage.absolute(uri))


def _outputs(made: Sequence[Mapping[str, Any]]) -> GivenInputs:
    return {"kinds": [one["kind"] for one in made], "images": sum(one.get("ok", 0) for one in made)}


def _images(inputs: Sequence[str], selection: Selection, how: dict[str, Any]) -> GivenInputs:
    """Return the facts from listing the inputs."""
    kinds: Counter[str] = Counter()
    images: int | None = 0
    size = 0
    for unit in units(inputs, selection, **how) if inputs else _none():
        kinds[unit.kind] += 1
        size += unit.bytes
        count = _count(unit)
        images = None if images is None or count is None else images + count
    return {"units": kinds.total(), "kinds": dict(kinds), "bytes": size, "images": images}


def _none() -> Iterator[Unit]:
    return iter(())


def _count(unit: Unit) -> int | None:
    """Return the number of images of a unit, if its listing or its footer has it."""
    if unit.kind == "files":
        return len(unit.uris)
    if unit.rows is not None:
        return unit.rows[1] - unit.rows[0]
    if unit.kind == "parquet":
        try:
            with parquet.opened(unit.uris[0]) as file:
                return int(file.count)
        except BrokenError:
            return None
    return None


def _manifolds(config: Any) -> list[StoredManifold]:
    """Return the manifolds that a job is given, or those of its attributor."""
    given = getattr(config, "manifold", ())
    model = getattr(config, "model", None)
    if model is None:
        return open_manifolds((given,) if isinstance(given, str) else given)
    with opened_model(model, given) as source:
        targets = trained_targets(TrainedAttributor.open(source.attributor), source.manifolds)
        return [target.manifold for target in targets.values() if target.manifold]


def _learned(config: Any, reals: Sequence[StoredManifold]) -> bool:
    names = {one.space.name for one in reals} | set((getattr(config, "space", "") or "").split("+"))
    return bool(names & set(LEARNED)) or bool(getattr(config, "denoiser", False))
