"""Attributors by MLflow's names (models:/NAME@ALIAS, models:/NAME/3, runs:/ID/attributor).

An attributor in a folder is used where it lies. The driver downloads and checks an attributor from
MLflow, and copies it under the job's own output, where every node can read it.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from manifpt import outputs, storage
from manifpt.attribution.crawl.crawl_format import ModelFacts, ModelOrigin
from manifpt.attribution.model.attributor_format import AttributorManifest
from manifpt.errors import ManifptError

ATTRIBUTOR, MANIFOLDS = "attributor", "manifolds"
# Under a job's output, where its workers find the model.
KEPT = "model"

_REGISTERED = re.compile(r"models:/+([^/@]+)(?:@([^/@]+)|/(\d+))")


@dataclass(frozen=True)
class AttributorSource:
    """An attributor to use: its folder, its manifolds if they were moved, and its origin.

    ``origin`` is None for a folder.
    """

    attributor: str
    manifolds: tuple[str, ...] = ()
    origin: ModelOrigin | None = None

    def kept(self, output: str) -> "AttributorSource":
        """Return the same model under ``output``, copied there unless it is; a folder stays."""
        if self.origin is None:
            return self
        here = self.attributor.removesuffix(f"/{ATTRIBUTOR}")
        there = storage.join(output, KEPT, storage.digest(self.origin)[:12])
        manifest = storage.join(there, ATTRIBUTOR, outputs.MANIFEST)
        if not storage.exists(manifest):
            # The attributor's manifest comes last: with it, all is there.
            last = storage.join(self.attributor, outputs.MANIFEST)
            files = [uri for uri, _ in storage.files_under(here) if uri != last]
            for uri in [*files, last]:
                storage.copy(uri, there + uri.removeprefix(here))
        moved = [there + m.removeprefix(here) if m.startswith(here) else m for m in self.manifolds]
        return replace(self, attributor=storage.join(there, ATTRIBUTOR), manifolds=tuple(moved))

    def facts(self) -> ModelFacts:
        """Return the facts of the model for a job's summary."""
        if self.origin is None:
            return {"model": self.attributor}
        return {"model": self.origin["uri"], "registered": self.origin}


def model_places(model: str, manifolds: Sequence[str]) -> list[tuple[str, str]]:
    """Return the options and the places that ``opened_model`` reads, for ``claims.claim``."""
    found = [] if _is_registered(model) else [("--model", model)]
    return [*found, *(("--manifold", uri) for uri in manifolds)]


def _is_registered(model: str) -> bool:
    return model.startswith(("models:/", "runs:/"))


def included(folder: str, manifest: AttributorManifest) -> list[str]:
    """Return the folders of the manifolds of a self-contained model."""
    names = [branch["name"] for branch in manifest["branches"] if branch["manifold"]]
    return [storage.join(folder, name) for name in names]


@contextmanager
def opened_model(model: str, manifolds: Sequence[str] = ()) -> Iterator[AttributorSource]:
    """Find the attributor that ``--model`` names; one of MLflow's is a local copy in the block.

    ``manifolds`` say where its manifolds lie now; they override the places in the model.
    """
    if not _is_registered(model):
        yield AttributorSource(storage.absolute(model), tuple(manifolds))
        return
    with tempfile.TemporaryDirectory(prefix="manifpt-model-") as scratch:
        folder, origin = _download(model, scratch)
        attributor = storage.join(folder, ATTRIBUTOR)
        manifest = outputs.require(attributor, "attributor", "--model")
        brought = storage.join(folder, MANIFOLDS)
        inside = included(brought, manifest) if storage.exists(brought) else []
        yield AttributorSource(attributor, tuple(manifolds or inside), origin)


def _download(uri: str, scratch: str) -> tuple[str, ModelOrigin]:
    """Download a model; return the folder of its artifacts, and which model it is."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        origin = _origin(uri)
        mlflow.artifacts.download_artifacts(origin["uri"], dst_path=scratch)
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0][:200].rstrip(".")
        raise ManifptError(
            f"--model {uri}: {reason}; register it by manifpt register, or check the name and "
            "MLFLOW_TRACKING_URI"
        ) from None
    folder = str(Path(scratch) / "artifacts")
    if not storage.exists(storage.join(folder, ATTRIBUTOR)):
        raise ManifptError(
            f"--model {uri}: holds no attributor; name a model that manifpt register made"
        )
    return folder, origin


def _origin(uri: str) -> ModelOrigin:
    """Return the model that a URI means now: an alias may mean another one later."""
    from mlflow import MlflowClient
    from mlflow.models import get_model_info

    match = _REGISTERED.fullmatch(uri)
    if match is None:
        info = get_model_info(uri)
        return {"uri": f"models:/{info.model_id}", "run": info.run_id}
    name, alias, version = match.groups()
    client = MlflowClient()
    found = (
        client.get_model_version_by_alias(name, alias)
        if alias
        else client.get_model_version(name, version)
    )
    return {
        "uri": f"models:/{name}/{found.version}",
        "name": name,
        "version": str(found.version),
        "run": found.run_id,
    }
