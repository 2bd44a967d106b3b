"""The attribution network: a torchvision classifier with a stem that suits the image size."""

import numpy as np
import torch
from torch import Tensor, nn

from manifpt.backbone import build_backbone, choose_stem


class AttributionNetwork(nn.Module):
    """Normalises B x C x H x W artifacts a channel and maps them to B x classes logits.

    The normalisation is that of the training artifacts and travels with the weights.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        shape: tuple[int, int, int],
        stem: str = "auto",
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        channels = shape[0]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _per_channel(mean or [0.0] * channels))
        self.register_buffer("std", _per_channel(std or [1.0] * channels).clamp_min(1e-6))
        self.trunk = build_backbone(backbone, classes, channels, choose_stem(stem, shape[-1]))

    def forward(self, artifacts: Tensor) -> Tensor:
        """Return B x classes logits."""
        logits: Tensor = self.trunk((artifacts - self.mean) / self.std)
        return logits


def _per_channel(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


@torch.inference_mode()
def logits(
    network: nn.Module, artifacts: np.ndarray, device: str = "cpu", batch_size: int = 256
) -> np.ndarray:
    """Return N x classes logits of N x C x H x W artifacts, float32."""
    parts = []
    for start in range(0, len(artifacts), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(artifacts[start : start + batch_size]))
        parts.append(network(batch.float().to(device)).float().cpu().numpy())
    return np.concatenate(parts)
