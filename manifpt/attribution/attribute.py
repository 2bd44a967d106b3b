"""Any images -> the attributions table: which generator, how surely, nearest to which real."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifpt import outputs, pipeline, session, storage
from manifpt.attribution.attributor import Attributor
from manifpt.attribution.registered import opened
from manifpt.attribution.retry import again, begin, check_codes, clean, merged, read_again
from manifpt.device import device_and_precision
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection
from manifpt.images.inventory import Inventory
from manifpt.images.read import is_own, sized, unit_to_json
from manifpt.images.sources import AS_FOUND, Reading
from manifpt.manifold.manifold import Manifold, open_manifolds
from manifpt.manifold.projector import Projection
from manifpt.progress import alive
from manifpt.projection import Projector, Target, project, projectors_of
from manifpt.records import Records
from manifpt.spaces import space_from_card
from manifpt.unique import check_ids
from manifpt.work import FOLDER, Work

KIND = "attributions"
TOP_K = 3
SUMMARY = "summary.json"
# The least probability of an answer: none of the others is as likely as all of them together.
SURE = 0.5

ATTRIBUTIONS = {
    "id": pa.string(),
    "uri": pa.string(),
    "sha256": pa.string(),
    "status": pa.string(),
    "source": pa.string(),
    "prediction": pa.string(),
    "probability": pa.float64(),
    "decision": pa.string(),
    "top_k": pa.list_(pa.struct({"source": pa.string(), "probability": pa.float64()})),
    "neighbor_id": pa.string(),
    "distance": pa.float64(),
    "percentile": pa.float64(),
    "in_manifold": pa.bool_(),
}


def decision(prediction: str, probability: float) -> str:
    """Return ``real`` or ``generator`` by the prediction, or ``unsure`` below ``SURE``."""
    if probability < SURE:
        return "unsure"
    return "real" if prediction == "real" else "generator"


@dataclass
class AttributeStage:
    """Images -> attributions, in one process."""

    model: str
    projectors: list[Projector]
    columns: tuple[str, ...] = ()

    @cached_property
    def attributor(self) -> Attributor:
        """The attributor, read at first use."""
        return Attributor.open(self.model, device_and_precision()[0])

    def __call__(self, table: pa.Table) -> pipeline.Result:
        """Attribute the rows of an images table."""
        return pipeline.Result({"attributions": self.attributions(table)})

    def attributions(self, table: pa.Table) -> pa.Table:
        """Return the attributions table of an images table; ``source`` is what the input said.

        Neighbour and distance are those of the first space with a manifold.
        """
        classes = self.attributor.classes
        made = [p(sized(table, p.space.size)) for p in self.projectors]
        reals = [b for p, (_, b) in zip(self.projectors, made, strict=True) if p.manifold]
        beside = dict(reals[0] if reals else made[0][1])
        beside["in_manifold"] = np.any([b["in_manifold"] for _, b in made], axis=0).tolist()
        probabilities = self.attributor.probabilities([artifacts for artifacts, _ in made])
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_K]
        ranked = [
            [{"source": classes[i], "probability": float(p[i])} for i in line]
            for p, line in zip(probabilities, order, strict=True)
        ]
        columns = {
            **{name: table[name].to_pylist() for name in ("id", "uri", "sha256", "source")},
            "status": ["ok"] * table.num_rows,
            "prediction": [line[0]["source"] for line in ranked],
            "probability": [line[0]["probability"] for line in ranked],
            "decision": [decision(r[0]["source"], r[0]["probability"]) for r in ranked],
            "top_k": ranked,
            **beside,
            **{name: table[name].to_pylist() for name in self.columns},
        }
        schema = ATTRIBUTIONS | dict.fromkeys(self.columns, pa.string())
        return pa.table({name: pa.array(columns[name], kind) for name, kind in schema.items()})


def check_columns(columns: Sequence[str]) -> None:
    """Raise if metadata columns have names that the tables of the output have themselves."""
    taken = [c for c in columns if c in ATTRIBUTIONS or c in pipeline.QUARANTINE or is_own(c)]
    if taken:
        raise ManifptError(f"--columns {' '.join(taken)}: taken by the output; leave it out")
    if len(set(columns)) < len(columns):
        raise ManifptError(f"--columns {' '.join(columns)}: name each only once")


def trained_targets(attributor: Attributor, manifolds: Sequence[str]) -> dict[str, Target]:
    """Return what embeds and projects as was done for the attributor's training images.

    ``manifolds`` say where its manifolds lie now; by default, where they were. Others raise.
    """
    branches = attributor.branches
    where = manifolds or [b["manifold"] for b in branches if b["manifold"]]
    opened = open_manifolds(where)
    wanted = sum(b["manifold"] is not None for b in branches)
    if len(opened) != wanted:
        raise ManifptError(f"--manifold: the attributor has {wanted}, not {len(opened)}")
    left = iter(opened)
    found: list[Manifold | None] = [next(left) if b["manifold"] else None for b in branches]
    hashes = [reals.sha256 if reals else None for reals in found]
    attributor.check_manifolds(hashes, "--manifold")
    projections = [
        Projection(**branch["projection"]).on(reals.manifest) if reals else None
        for branch, reals in zip(branches, found, strict=True)
    ]
    if [p and p.card() for p in projections] != [branch["projection"] for branch in branches]:
        raise ManifptError("--manifold: its geometry is not that of training; give that manifold")
    return {
        branch["name"]: Target(
            reals.space if reals else space_from_card(branch["space"]),
            DecodeRule.from_card(branch["decode"]),
            reals,
            projection,
        )
        for branch, reals, projection in zip(branches, found, projections, strict=True)
    }


def attribute(
    inputs: Sequence[str],
    model: str,
    output: str,
    *,
    manifolds: Sequence[str] = (),
    split: str | None = None,
    sources: Sequence[str] | None = None,
    reading: Reading = AS_FOUND,
    search: session.SearchDemand = session.ANY_SEARCH,
    demand: session.Demand = session.ANY,
    overwrite: bool = False,
    retry: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Attribute every image of ``inputs`` and publish the table; return the summary.

    The inputs are listed once; until the output is finished, every later start is about what was
    listed then (see ``work``). Once it is, an input that has changed makes other settings.

    ``model`` is an attributor's folder, or MLflow's name of one (see ``registered``).

    ``split`` keeps only the images of that split, and those that declare none; ``sources`` is the
    same for sources. ``reading`` says how inputs are read, and which of their columns travel.
    ``retry`` tries again only what a finished output has quarantined, for one
    of these codes, or for any if there is none.
    """
    check_columns(reading.columns)
    started = time.monotonic()
    check_codes(retry or ())
    output = storage.absolute(output)
    selection = Selection((split,) if split else None, tuple(sources) if sources else None)
    inventory = Inventory(inputs, selection, reading)
    with opened(model, manifolds) as found:
        attributor = Attributor.open(found.attributor)
        trained_targets(attributor, found.manifolds)
        made_of = [vars(selection), attributor.manifest["key"]]
        claim = storage.digest([inventory.given, asdict(reading), *made_of])
        pool = session.pool(demand, uses_gpu=True)
        manifest: dict[str, Any] | None
        if retry is not None:
            manifest = _finished(output, claim)
        elif manifest := outputs.begin(
            output,
            KIND,
            claim,
            overwrite=overwrite,
            published=lambda: storage.digest([inventory.key(), *made_of]),
        ):
            clean(output, manifest)
            return storage.read_json(storage.join(output, SUMMARY))
        work = Work.find(output) or _listed(inventory, output)
        source = found.kept(output)
    with alive(output):
        targets = trained_targets(attributor, source.manifolds)
        projectors, pool = projectors_of(targets, search, pool)
        stage = partial(AttributeStage, source.attributor, projectors, reading.columns)
        to_do = partial(
            project, "attribute", selection=selection, projectors=projectors, build=stage,
            output=output, pool=pool,
        )  # fmt: skip
        if manifest is not None and retry is not None:
            return _try_again(output, manifest, retry, to_do)
        records = to_do(units=work)
        files = pipeline.parts(records)
        check_ids(output, files)
    counts = pipeline.totals(records)
    seconds = time.monotonic() - started
    summary = {
        **counts,
        "seconds": seconds,
        "images_per_second": counts["rows_in"] / seconds,
        **source.facts(),
        "manifolds": [target.manifold.uri for target in targets.values() if target.manifold],
        "inputs": work.facts,
    }
    storage.write_json(storage.join(output, SUMMARY), summary)
    key = storage.digest([work.facts["content_key"], *made_of])
    outputs.publish(output, KIND, key, {**summary, "claim": claim, "files": files})
    pipeline.clear_records(output, work=False)  # --retry-quarantined reads the units again
    return summary


def _listed(inventory: Inventory, output: str) -> Work:
    """List the inputs and store their units; if that fails, the folder is as it was before."""
    try:
        with alive(output):
            return Work.store(output, map(unit_to_json, inventory), inventory.describe)
    except ManifptError:
        outputs.release(output, FOLDER)
        raise


def _finished(output: str, claim: str) -> dict[str, Any]:
    """Return the manifest of a finished output of the same options."""
    manifest = outputs.require(output, KIND, "--output")
    if manifest.get("claim") != claim:
        raise ManifptError(
            f"--output {output}: holds attributions made with other settings; --retry-quarantined "
            "wants the options of the command that made them"
        )
    return manifest


def _try_again(
    output: str,
    manifest: dict[str, Any],
    codes: Sequence[str],
    to_do: Callable[..., Records],
) -> dict[str, Any]:
    """Try the rows quarantined for one of ``codes`` again, and publish what that changes."""
    summary = storage.read_json(storage.join(output, SUMMARY))
    clean(output, manifest)
    tried = again(output, manifest["files"], codes)
    if tried.files:
        generation = begin(output, manifest, codes)
        read = partial(read_again, output=output, codes=codes)
        records = to_do(units=tried, read=read, only=tried.files, generation=generation)
        files, counts = merged(manifest, tried, records)
        check_ids(output, files)
        summary |= counts
        storage.write_json(storage.join(output, SUMMARY), summary)
        body = {"claim": manifest["claim"], "files": files}
        body["retries"] = manifest.get("retries", 0) + 1
        manifest = outputs.publish(output, KIND, manifest["key"], summary | body)
        clean(output, manifest)
    return summary
