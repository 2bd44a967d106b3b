"""A trained attributor as a folder: weights, classes, normalisation, and what it was made from."""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from manifpt import outputs, storage
from manifpt.attribution.network import AttributionNetwork, logits
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

    @cached_property
    def network(self) -> AttributionNetwork:
        """The network with its trained weights, ready for inference."""
        data = storage.read_bytes(storage.join(self.uri, WEIGHTS))
        network = AttributionNetwork(
            self.manifest["backbone"],
            len(self.classes),
            tuple(self.manifest["shape"]),
            self.manifest["stem"],
        )
        network.load_state_dict(torch.load(io.BytesIO(data), weights_only=True))
        return network.eval().to(self.device)

    def probabilities(self, artifacts: np.ndarray) -> np.ndarray:
        """Return N x classes probabilities of N x C x H x W artifacts, float64."""
        values = logits(self.network, artifacts, self.device).astype(np.float64)
        values = np.exp(values - values.max(1, keepdims=True))
        out: np.ndarray = values / values.sum(1, keepdims=True)
        return out

    def seen(self) -> frozenset[str]:
        """Return the pixel hashes of the images that training and validation used."""
        table = storage.read_parquet(storage.join(self.uri, SEEN))
        return frozenset(table["pixel_sha256"].to_pylist())

    def check_manifold(self, content_sha256: str | None, option: str) -> None:
        """Raise unless artifacts of that manifold are those that training saw."""
        expected = self.manifest["manifold_sha256"]
        if content_sha256 != expected:
            names = [str(s)[:12] if s else "no manifold" for s in (expected, content_sha256)]
            raise ManifptError(
                f"{option}: the attributor was trained with manifold {names[0]}, not {names[1]}; "
                f"give the manifold that it was trained with"
            )
