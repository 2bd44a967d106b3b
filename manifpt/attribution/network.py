"""The attribution network: a torchvision classifier with a stem that suits the image size."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models

from manifpt.errors import ManifptError

STEMS = ("auto", "full", "half", "standard")
FULL_UP_TO, HALF_UP_TO = 48, 112


def choose_stem(stem: str, size: int) -> str:
    """Return how far the stem reduces: ``full`` not at all, ``half`` by 2, ``standard`` by 4.

    Fingerprints live in the finest detail (Gragnaniello et al., ICME 2021, leave the first
    reduction out for that reason), and small images have no resolution to lose: ``auto`` keeps
    full resolution up to 48 pixels and half of it up to 112.
    """
    if stem != "auto":
        return stem
    return "full" if size <= FULL_UP_TO else "half" if size <= HALF_UP_TO else "standard"


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


def check_backbone(backbone: str) -> None:
    """Raise if torchvision has no classification model of that name."""
    known = models.list_models(module=models)
    if backbone not in known:
        near = ", ".join(sorted(n for n in known if n.startswith("resnet")))
        raise ManifptError(
            f"--backbone {backbone}: not a torchvision classifier; try one of {near}"
        )


def build_backbone(backbone: str, classes: int, channels: int, stem: str) -> nn.Module:
    """Return an untrained torchvision classifier with the stem and the number of classes given."""
    check_backbone(backbone)
    network: nn.Module = models.get_model(backbone, weights=None, num_classes=classes)
    if isinstance(network, models.ResNet):
        width = network.conv1.out_channels
        if stem != "standard":
            stride = 1 if stem == "full" else 2
            network.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            network.maxpool = nn.Identity()  # type: ignore[assignment]
        elif channels != 3:
            network.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    return network


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


def device_and_precision() -> tuple[str, Any]:
    """Return the device of this process and the dtype to train in (None where none pays)."""
    if not torch.cuda.is_available():
        # On CPUs without the instructions bfloat16 is many times slower. With them (Zen 4, torch
        # 2.14) it is 1.6 times faster, but the gradient of kernel taps that meet nothing but
        # padding, as in a 3 x 3 convolution of 1 x 1 maps, is memory that was never written.
        return "cpu", None
    return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else None
