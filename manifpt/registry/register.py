"""An attributor's folder -> an MLflow model of a run -> a version in the registry."""

import io
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from PIL import Image

import manifpt
from manifpt import outputs, storage
from manifpt.attribution.crawl.registered import ATTRIBUTOR, MANIFOLDS
from manifpt.attribution.model.attributor_format import AttributorManifest, BranchCard
from manifpt.attribution.model.targets import trained_targets
from manifpt.attribution.model.trained import TrainedAttributor, sealed
from manifpt.attribution.unknown.decision import USUAL
from manifpt.errors import ManifptError, public
from manifpt.evaluation.evaluate import METRICS
from manifpt.evaluation.evaluation_format import EvaluationManifest, EvaluationMetrics
from manifpt.manifold import StoredManifold
from manifpt.manifold.copy import copy_manifold, stored_bytes
from manifpt.outputs.provenance import git_commit
from manifpt.registry import pyfunc as model
from manifpt.registry.model_card import Facts, card, description
from manifpt.registry.requirements import pinned
from manifpt.tracking.server import enter_experiment

# By default, manifolds of at most this many bytes together come with a model.
INCLUDE_BYTES = 256 * 2**20
MODEL_CARD = "model_card.md"


@dataclass(frozen=True)
class Logged:
    """A model of a run, and the facts on its card."""

    model_id: str
    facts: Facts


def log_model(
    uri: str,
    run_id: str,
    *,
    manifold: str = "reference",
    moved: Sequence[str] = (),
    evaluation: str | None = None,
) -> Logged:
    """Log a finished attributor as an MLflow model of a run.

    Args:
        uri: the attributor's folder.
        run_id: MLflow's id of the run.
        manifold: ``include`` copies its manifolds into the model; ``reference`` names them by URI
            and hash; ``auto`` includes them if they take at most INCLUDE_BYTES together.
        moved: the present places of its manifolds, if they were moved.
        evaluation: folder of manifpt evaluate, for the card.

    """
    attributor = TrainedAttributor.open(uri)
    targets = trained_targets(attributor, moved)
    manifolds = [target.manifold for target in targets.values() if target.manifold]
    metrics = _metrics(evaluation, attributor) if evaluation else None
    included = _included(manifold, manifolds)
    facts = Facts(attributor.manifest, manifolds, metrics, included, git_commit())
    with tempfile.TemporaryDirectory(prefix="manifpt-register-") as scratch:
        enter_experiment()  # else the model's is MLflow's default one
        info = Model.log(
            artifact_path=None,
            name=ATTRIBUTOR,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=model.__file__,
            code_paths=[_code(scratch)],
            artifacts=_files(scratch, attributor, facts),
            signature=_signature(),
            input_example=pd.DataFrame({"image": [_example(attributor)]}),
            pip_requirements=pinned([getattr(t.space, "backbone", "") for t in targets.values()]),
        )
    return Logged(info.model_id, facts)


def _code(scratch: str) -> str:
    """Copy the package without its data; return the folder of the copy."""
    unneeded = shutil.ignore_patterns("data", "__pycache__")
    copied = shutil.copytree(
        Path(manifpt.__file__).parent, Path(scratch, "manifpt"), ignore=unneeded
    )
    return str(copied)


def register(logged: Logged, name: str, alias: str) -> dict[str, str]:
    """Make a logged model the next version of a registered one; return its new names."""
    facts = logged.facts
    tags = {
        "attributor_key": facts.manifest["key"],
        "git_commit": facts.commit,
        "manifold": _kept(facts),
        "manifold_sha256": ",".join(m.sha256 for m in facts.manifolds) or "none",
        "manifold_uri": ",".join(public(m.uri) for m in facts.manifolds) or "none",
    }
    tags = {f"manifpt.{key}": value for key, value in tags.items()}
    found = mlflow.register_model(f"models:/{logged.model_id}", name, tags=tags)
    client = mlflow.MlflowClient()
    client.update_model_version(name, found.version, description(facts))
    client.set_registered_model_alias(name, alias, found.version)
    version = str(found.version)
    print(f"registered models:/{name}/{version} as @{alias}", file=sys.stderr, flush=True)
    return {
        "registered": f"models:/{name}/{version}",
        "version": version,
        "alias": f"models:/{name}@{alias}",
        "manifold": _kept(facts),
    }


def _kept(facts: Facts) -> str:
    """Describe the place of the model's manifolds."""
    if not facts.manifolds:
        return "none"
    return "included" if facts.included else "referenced"


def _included(manifold: str, manifolds: Sequence[StoredManifold]) -> bool:
    """Decide whether the manifolds come with the model, and print why."""
    if manifold == "reference" or not manifolds:
        return False
    size = sum(stored_bytes(one) for one in manifolds)
    chosen = manifold == "include" or size <= INCLUDE_BYTES
    word = "included" if chosen else "referenced by URI and hash"
    limit = "" if manifold == "include" else f", auto includes up to {INCLUDE_BYTES / 2**20:.0f}"
    print(f"manifold: {word} ({size / 2**20:.1f} MiB{limit})", file=sys.stderr, flush=True)
    return chosen


def _metrics(evaluation: str, attributor: TrainedAttributor) -> EvaluationMetrics:
    """Return the metrics of an evaluation; raise if it is of another attributor."""
    manifest: EvaluationManifest = outputs.require(evaluation, "evaluation", "--evaluation")
    same_place = manifest["model"] == attributor.uri
    if (
        manifest.get("attributor", attributor.manifest["key"] if same_place else None)
        != (attributor.manifest["key"])
    ):
        raise ManifptError(
            f"--evaluation {evaluation}: is of another attributor; evaluate this one first"
        )
    return storage.read_json(storage.join(evaluation, METRICS))


def _files(scratch: str, attributor: TrainedAttributor, facts: Facts) -> dict[str, str]:
    """Write the model's files to a local folder; return their paths by name.

    The manifest in the model says where the manifolds lie now.
    """
    folder = storage.join(scratch, ATTRIBUTOR)
    for name, entry in attributor.manifest["files"].items():
        source = storage.join(attributor.uri, name)
        storage.copy(source, storage.join(folder, name), entry["sha256"])
    left = iter(facts.manifolds)
    branches: list[BranchCard] = [
        {**b, "manifold": next(left).uri if b["manifold"] else None} for b in attributor.branches
    ]
    manifest: AttributorManifest = {**attributor.manifest, "branches": branches}
    storage.write_json(storage.join(folder, outputs.MANIFEST), sealed(manifest))
    text = storage.join(scratch, MODEL_CARD)
    storage.write_bytes(text, card(facts).encode())
    files = {ATTRIBUTOR: folder, "model_card": text}
    if facts.included:
        files[MANIFOLDS] = storage.join(scratch, MANIFOLDS)
        named = [b["name"] for b in branches if b["manifold"]]
        for name, manifold in zip(named, facts.manifolds, strict=True):
            copy_manifold(manifold, storage.join(files[MANIFOLDS], name))
    return files


def _signature() -> ModelSignature:
    """Return image bytes in, the model's columns out, and the rule of decisions as parameters."""
    columns = [
        ColSpec(DataType.double if n in model.NUMBERS else DataType.string, n, required=False)
        for n in model.COLUMNS
    ]
    params = [ParamSpec(name, DataType.double, value) for name, value in vars(USUAL).items()]
    image = Schema([ColSpec(DataType.binary, "image")])
    return ModelSignature(image, Schema(columns), ParamSchema(params))


def _example(attributor: TrainedAttributor) -> bytes:
    """Return a grey image of the attributor's size, as PNG."""
    size = attributor.branches[0]["decode"]["size"]
    sink = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), 127, np.uint8)).save(sink, "PNG")
    return sink.getvalue()
