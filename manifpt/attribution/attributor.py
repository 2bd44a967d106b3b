"""A trained attributor as a folder: weights, classes, normalisation, and what it was made from."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from manifpt import outputs, storage
from manifpt.attribution.network import AttributionNetwork, Design, log_probabilities
from manifpt.errors import ManifptError

WEIGHTS = "weights.pt"
SEEN = "seen.parquet"


@dataclass(frozen=True)
class Attributor:
    """The network of a finished training with its manifest."""

    uri: str
    manifest: dict[str, Any]
    device: str = "cpu"

    @classmethod
    def open(cls, uri: str, device: str = "cpu") -> "Attributor":
        """Open a finished attributor; its weights are read at first use."""
        return cls(storage.absolute(uri), outputs.require(uri, "attributor", "--model"), device)

    @property
    def classes(self) -> list[str]:
        """Sources that it tells apart, in the order of the logits."""
        names: list[str] = self.manifest["classes"]
        return names

    @property
    def branches(self) -> list[dict[str, Any]]:
        """What each space's artifacts were, in the order of the network's branches."""
        found: list[dict[str, Any]] = self.manifest["branches"]
        return found

    @cached_property
    def network(self) -> AttributionNetwork:
        """The network with its trained weights, ready for inference."""
        data = storage.read_bytes(storage.join(self.uri, WEIGHTS))
        network = AttributionNetwork(Design.from_card(self.manifest["design"]))
        network.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
        return network.eval().to(self.device)

    def probabilities(self, artifacts: Sequence[np.ndarray]) -> np.ndarray:
        """Return N x classes probabilities of the artifacts in each space, float64."""
        shaped = [
            a.reshape(-1, *branch["shape"])
            for a, branch in zip(artifacts, self.branches, strict=True)
        ]
        values = log_probabilities(self.network, shaped, self.device).astype(np.float64)
        values = np.exp(values - values.max(1, keepdims=True))
        out: np.ndarray = values / values.sum(1, keepdims=True)
        return out

    def seen(self) -> frozenset[str]:
        """Return the pixel hashes of the images that training and validation used."""
        table = storage.read_parquet(storage.join(self.uri, SEEN))
        return frozenset(table["pixel_sha256"].to_pylist())

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
