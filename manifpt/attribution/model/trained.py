"""A trained attributor as a folder: weights, classes, normalisation, and its inputs."""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from manifpt import outputs, storage
from manifpt.artifacts.branches import (
    LOOKS,
    ArtifactBranch,
    check_unchanged,
    of_classes,
    read_artifacts,
)
from manifpt.attribution.model.attributor_format import (
    AttributorFacts,
    AttributorManifest,
    BranchCard,
    NearValidation,
)
from manifpt.attribution.model.fusion import fused_log_probabilities
from manifpt.attribution.model.near import NEAR, near_marks
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.attribution.model.network import outputs as network_outputs
from manifpt.attribution.model.tiled import pooled_tiles
from manifpt.attribution.unknown.known import Outputs
from manifpt.attribution.unknown.open_set import REMEDY, OpenSet
from manifpt.engine import prometheus
from manifpt.errors import DamageError, ManifptError
from manifpt.images.perceptual import DISTANCE, HammingIndex
from manifpt.images.stacks import image_starts
from manifpt.nets.backbone import folded
from manifpt.outputs import claims, integrity
from manifpt.outputs.formats import Manifest
from manifpt.storage import Written

WEIGHTS = "weights.pt"
SEEN = "seen.parquet"
OPEN_SET = "unknown.npz"
SEAL: Final = "manifest_sha256"
UNSEALED = frozenset({*Manifest.__annotations__, SEAL})  # entries that publishing adds


@dataclass(frozen=True)
class TrainedAttributor:
    """The network of a finished training with its manifest."""

    uri: str
    manifest: AttributorManifest
    device: str = "cpu"

    @classmethod
    def open(cls, uri: str, device: str = "cpu") -> Self:
        """Open a finished attributor; its files are read, and checked, at first use."""
        manifest: AttributorManifest = outputs.require(uri, "attributor", "--model")
        whole = all(name in manifest for name in ("classes", "branches", "design", "files"))
        if not whole or manifest.get(SEAL, _seal(manifest)) != _seal(manifest):
            raise DamageError(f"--model {uri}: its manifest is damaged or was changed; {REMEDY}")
        return cls(storage.absolute(uri), manifest, device)

    @property
    def classes(self) -> list[str]:
        """Sources that it tells apart, in the order of the logits."""
        return self.manifest["classes"]

    @property
    def branches(self) -> list[BranchCard]:
        """The facts of each space's artifacts, in the order of the network's branches."""
        return self.manifest["branches"]

    def _uri(self, name: str) -> str:
        return storage.join(self.uri, name)

    def _bytes(self, name: str) -> bytes:
        """Return a file's content, checked against its hash in the manifest if it has one."""
        entry = self.manifest.get("files", {}).get(name)
        return integrity.checked_bytes(
            self._uri(name), entry.get("sha256") if entry else None, REMEDY
        )

    def network(self) -> AttributionNetwork:
        """Read the network with its weights as they were trained."""
        data = self._bytes(WEIGHTS)
        network = AttributionNetwork(Design.from_card(self.manifest["design"]))
        integrity.load_state(network, data, self._uri(WEIGHTS), REMEDY)
        # As in training: on CPUs convolutions are half as fast again in this order.
        ordered: AttributionNetwork = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return ordered.to(self.device)

    @cached_property
    def ready(self) -> AttributionNetwork:
        """The network for inference, whose batch norms are folded."""
        network = self.network()
        for branch in network.branches:
            branch.trunk = folded(branch.get_submodule("trunk"))
        return network

    @cached_property
    def open_set(self) -> OpenSet | None:
        """The scores of the unknown; None if the attributor has none."""
        if OPEN_SET not in self.manifest["files"]:
            return None
        return OpenSet.from_bytes(self._bytes(OPEN_SET), self._uri(OPEN_SET))

    @property
    def tiled(self) -> bool:
        """Whether images larger than a space's size are looked at in tiles."""
        return any(branch["decode"].get("tiles") for branch in self.branches)

    def outputs(self, artifacts: Sequence[np.ndarray], begins: np.ndarray | None = None) -> Outputs:
        """Return the network's logits and features of the artifacts in each space.

        Where rows are tiles, ``begins`` are the first of each image, and outputs are of images.
        """
        shaped = [
            a.reshape(-1, *branch["shape"])
            for a, branch in zip(artifacts, self.branches, strict=True)
        ]
        with prometheus.timed("classify"):
            found = network_outputs(self.ready, shaped, self.device)
        return found if begins is None else pooled_tiles(found, begins)

    def fused(self, logits: np.ndarray, weights: Sequence[float] | None = None) -> np.ndarray:
        """Return N x classes probabilities of N x heads x classes logits, float64.

        The heads have their fitted weights, which calibrate them, unless others are given.
        """
        out: np.ndarray = self._fused(logits, weights).exp().numpy()
        return out

    def log_fused(self, logits: np.ndarray) -> np.ndarray:
        """Return the logarithms of ``fused``, which do not end at the least float above zero."""
        out: np.ndarray = self._fused(logits, None).numpy()
        return out

    def _fused(self, logits: np.ndarray, weights: Sequence[float] | None) -> torch.Tensor:
        fitted = self.ready.weights.double().cpu()
        given = fitted if weights is None else torch.tensor(weights, dtype=torch.float64)
        return fused_log_probabilities(torch.from_numpy(logits).double(), given)

    def probabilities(
        self, artifacts: Sequence[np.ndarray], begins: np.ndarray | None = None
    ) -> np.ndarray:
        """Return N x classes probabilities of the artifacts in each space, see ``outputs``."""
        return self.fused(self.outputs(artifacts, begins).logits)

    def unknown(self, outputs: Outputs) -> "Unknown | None":
        """Return the scores of the unknown of N images; None if the attributor has none."""
        if self.open_set is None:
            return None
        scores = self.open_set.scores(outputs)
        combined = self.open_set.unknown_score(scores)
        coordinates = self.open_set.coordinates_of(outputs, combined)
        return Unknown(combined, self.open_set.p_value(combined), scores, coordinates)

    def seen(self) -> frozenset[str]:
        """Return the pixel hashes of the images that training and validation used."""
        table = self.seen_table()
        return frozenset(table["pixel_sha256"].to_pylist())

    def seen_table(self) -> pa.Table:
        """Return the hashes of the images that training and validation used, a row an image."""
        table = storage.parquet_table(self._uri(SEEN), self._bytes(SEEN))
        if "pixel_sha256" not in table.column_names:
            raise DamageError(f"{self._uri(SEEN)}: has no pixel_sha256; {REMEDY}")
        return table

    def seen_looks(self) -> np.ndarray | None:
        """Return their perceptual hashes, N uint64; None if the artifacts had none."""
        table = self.seen_table()
        if LOOKS not in table.column_names or table[LOOKS].null_count == table.num_rows:
            return None
        found: np.ndarray = np.unique(table[LOOKS].drop_null().to_numpy())
        return found

    def check_manifolds(self, content_sha256: Sequence[str | None], option: str) -> None:
        """Raise unless artifacts of those manifolds, one a branch, are those of training."""
        for branch, found in zip(self.branches, content_sha256, strict=True):
            if found != branch["manifold_sha256"]:
                expected = branch["manifold_sha256"]
                names = [str(s)[:12] if s else "no manifold" for s in (expected, found)]
                raise ManifptError(
                    f"{option}: the attributor was trained with manifold {names[0]}, not "
                    f"{names[1]}; give the manifold that it was trained with"
                )


def sealed(manifest: AttributorManifest) -> AttributorManifest:
    """Return an attributor's manifest with a hash of itself, by which damage shows."""
    return {**manifest, SEAL: _seal(manifest)}


def _seal(manifest: AttributorManifest) -> str:
    kept = {name: value for name, value in manifest.items() if name not in UNSEALED}
    return storage.digest(json.loads(json.dumps(kept)))  # as it will be read


class Unknown(NamedTuple):
    """N images: ``unknown_score``, the share of known images as strange, N x single scores.

    ``coordinates``, N x D float32, are those by which groups of images are compared.
    """

    score: np.ndarray
    p_value: np.ndarray
    scores: np.ndarray
    coordinates: np.ndarray


class AttributorParts(NamedTuple):
    """The parts of an attributor: artifacts, design, class names in order, and trained weights.

    ``open_set`` is None if no scores of the unknown could be fitted.
    """

    branches: Sequence[ArtifactBranch]
    design: Design
    classes: list[str]
    weights: dict[str, torch.Tensor]
    open_set: OpenSet | None = None


def publish_attributor(
    claim: claims.Claim, made: AttributorParts, facts: AttributorFacts
) -> AttributorManifest:
    """Write an attributor's files and its manifest, with ``facts`` of its training; return it."""
    branches = made.branches
    check_unchanged(branches)
    manifest = branches[0].manifest
    classes = manifest["classes"]
    seen = seen_hashes(branches[0], made.classes)
    body: AttributorManifest = {
        **facts,
        "design": made.design.card(),
        "network": made.design.describe([branch.name for branch in branches]),
        "classes": made.classes,
        "branches": [branch_card(branch) for branch in branches],
        "weights": made.weights["weights"].tolist(),
        "heads": made.design.head_names([branch.name for branch in branches]),
        "artifacts": [branch.uri for branch in branches],
        "inputs": manifest["inputs"],
        "rows": {
            split: {name: classes[split][name] for name in made.classes if name in classes[split]}
            for split in ("train", "validation")
        },
        "near_training": near_training(seen),
        "files": write_files(claim, made, seen),
    }
    if "split_by" in manifest:
        body["split_by"] = manifest["split_by"]
    if "augment" in manifest:
        body["augmentation"] = manifest["augment"]
    return claim.publish(sealed(body))


def branch_card(branch: ArtifactBranch) -> BranchCard:
    """Return the facts of artifacts that are needed to compute the same of other images."""
    manifest = branch.manifest
    return {
        "name": branch.name,
        "shape": manifest["shape"],
        "space": manifest["space"],
        "decode": manifest["decode"],
        "manifold": manifest["manifold"],
        "manifold_sha256": manifest["manifold_sha256"],
        "projection": manifest["projection"],
    }


def seen_hashes(branch: ArtifactBranch, classes: Sequence[str]) -> pa.Table:
    """Return the hashes of the images of training and validation, a row an image.

    ``near_training`` says which validation images look like a training image, of any class; it is
    null of training images, and where there are no perceptual hashes.
    """
    found = []
    index: HammingIndex | None = None
    for split in ("train", "validation"):
        read = ["source", "pixel_sha256", LOOKS, *(["tile"] if "tiles" in branch.manifest else [])]
        paths = [storage.join(branch.uri, path) for path in branch.files(split)]
        table = of_classes(pa.concat_tables([read_artifacts(p, read) for p in paths]), classes)
        table = table.take(pa.array(image_starts(table)))
        table = table.select([name for name in read[1:3] if name in table.column_names])
        if LOOKS in table.column_names:
            table = table.append_column(NEAR, near_marks(table[LOOKS], index))
            index = HammingIndex(np.unique(table[LOOKS].drop_null().to_numpy()))
        found.append(table)
    return pa.concat_tables(found)


def near_training(seen: pa.Table) -> NearValidation | None:
    """Count the validation images near training, and say so where there are some.

    None without hashes.
    """
    if NEAR not in seen.column_names:
        return None
    count, known = pc.sum(seen[NEAR]).as_py() or 0, len(seen) - seen[NEAR].null_count
    if count:
        print(
            f"near_training: {count} of {known} validation images look like a training image "
            f"(perceptual hashes within {DISTANCE} bits), so validation flatters; --split-by keeps "
            "images of one prompt, scene or folder in one split",
            file=sys.stderr,
            flush=True,
        )
    return {"validation": count, "compared": known, "distance": DISTANCE}


def write_files(claim: claims.Claim, made: AttributorParts, seen: pa.Table) -> dict[str, Written]:
    """Write the weights, the hashes of training and validation, and the scores of the unknown."""
    sink = io.BytesIO()
    torch.save(made.weights, sink)
    found = {WEIGHTS: sink.getvalue(), SEEN: storage.parquet_bytes(seen)}
    if made.open_set is not None:
        found[OPEN_SET] = made.open_set.to_bytes()
    claim.check()
    return {
        name: storage.write_bytes(storage.join(claim.folder, name), data)
        for name, data in found.items()
    }
