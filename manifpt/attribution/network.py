"""The attribution network: a branch for each space, fused early or late.

Artifacts that are maps, C x H x W, go to a torchvision classifier with a stem that suits their
size; artifacts that are vectors, d, to a residual MLP (Gorishniy et al., "Revisiting deep learning
models for tabular data", NeurIPS 2021, section 3.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from manifpt.attribution.fusion import pooled
from manifpt.backbone import build_backbone, choose_stem, last_layer, without_head
from manifpt.device import CPU_BATCH, in_batches

FUSIONS = ("late", "early")
MLP_WIDTH, MLP_BLOCKS, MLP_DROPOUT = 512, 2, 0.3
EARLY_DROPOUT = 0.2
# A feature that hardly varies among training artifacts must not be blown up at another image.
LEAST_STD = 1e-6
GPU_BATCH = 256


@dataclass(frozen=True)
class Design:
    """What a network is made of: it and its weights are all that inference needs.

    ``shapes`` are those of the artifacts, one a branch. ``fusion`` is ``late``, each branch has
    logits of its own and their calibrated log-probabilities are added up; or ``early``, the
    branches' features meet in one last layer.
    """

    shapes: tuple[tuple[int, ...], ...]
    classes: int
    backbone: str = "resnet50"
    stem: str = "auto"
    fusion: str = "late"

    def card(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> "Design":
        """Return the design that a manifest carries."""
        return cls(**card | {"shapes": tuple(map(tuple, card["shapes"]))})

    def trunks(self) -> list[str]:
        """Say in words what classifies each branch."""
        maps = f"{self.backbone}, stem {{}}"
        return [
            maps.format(choose_stem(self.stem, shape[-1])) if len(shape) == 3 else "residual MLP"
            for shape in self.shapes
        ]


class ResidualBlock(nn.Module):
    """x + MLP(normalised x), B x d -> B x d."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(MLP_DROPOUT),
            nn.Linear(width, width),
            nn.Dropout(MLP_DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return B x d."""
        out: Tensor = x + self.layers(x)
        return out


def residual_mlp(features: int, classes: int | None) -> nn.Sequential:
    """Return a residual MLP, B x features -> B x classes, or to its width where that is None."""
    blocks = [ResidualBlock(MLP_WIDTH) for _ in range(MLP_BLOCKS)]
    last = nn.Linear(MLP_WIDTH, classes) if classes else nn.Identity()
    return nn.Sequential(
        nn.Linear(features, MLP_WIDTH), *blocks, nn.LayerNorm(MLP_WIDTH), nn.ReLU(), last
    )


class Branch(nn.Module):
    """Normalises the artifacts of one space, a channel or a number, and classifies them.

    The normalisation is that of the training artifacts and travels with the weights. Without
    ``classes`` it returns features, B x ``width``.
    """

    def __init__(self, shape: tuple[int, ...], classes: int | None, design: Design) -> None:
        super().__init__()
        beside = (1,) * (len(shape) - 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, shape[0], *beside))
        self.register_buffer("std", torch.ones(1, shape[0], *beside))
        if len(shape) == 3:
            stem = choose_stem(design.stem, shape[-1])
            self.trunk = build_backbone(design.backbone, classes or 1, shape[0], stem)
            self.width = last_layer(self.trunk)[1].in_features
            self.trunk = self.trunk if classes else without_head(self.trunk)
        else:
            self.trunk, self.width = residual_mlp(shape[0], classes), MLP_WIDTH

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take over the moments of the training artifacts, one a channel."""
        self.mean.copy_(torch.tensor(mean).view_as(self.mean))
        self.std.copy_(torch.tensor(std).view_as(self.std).clamp_min(LEAST_STD))

    def forward(self, artifacts: Tensor) -> Tensor:
        """Return B x classes logits, or B x width features."""
        out: Tensor = self.trunk((artifacts - self.mean) / self.std)
        return out


class AttributionNetwork(nn.Module):
    """Maps the artifacts of each space to logits, B x heads x classes, and fuses the heads.

    There is one head, or with late fusion of several spaces one for each.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        early = design.fusion == "early" and len(design.shapes) > 1
        each = None if early else design.classes
        self.branches = nn.ModuleList(Branch(shape, each, design) for shape in design.shapes)
        self.together = None
        if early:
            width = sum(int(branch.width) for branch in self.branches)  # type: ignore[arg-type,misc]
            self.together = nn.Sequential(
                nn.Dropout(EARLY_DROPOUT), nn.Linear(width, design.classes)
            )
        heads = 1 if early else len(design.shapes)
        self.weights: Tensor
        self.register_buffer("weights", torch.full((heads,), 1.0 / heads))

    def forward(self, artifacts: list[Tensor]) -> Tensor:
        """Return B x heads x classes logits."""
        found = [branch(a) for branch, a in zip(self.branches, artifacts, strict=True)]
        if self.together is not None:
            found = [self.together(torch.cat(found, 1))]
        return torch.stack(found, 1)

    def last_layers(self) -> list[nn.Linear]:
        """Return the last layer of each head, whose input are the head's features."""
        if self.together is not None:
            return [last_layer(self.together)[1]]
        return [last_layer(branch)[1] for branch in self.branches]

    def fuse(self, logits: Tensor) -> Tensor:
        """Return B x classes log-probabilities: those of the heads, weighted and added up."""
        return pooled(logits.float(), self.weights)


class Outputs(NamedTuple):
    """What a network says of N images, float32.

    ``logits`` are N x heads x classes, ``features`` of each head N x its width: what its last layer
    is given.
    """

    logits: np.ndarray
    features: list[np.ndarray]


def outputs(
    network: AttributionNetwork,
    artifacts: Sequence[np.ndarray],
    device: str = "cpu",
    batch_size: int | None = None,
) -> Outputs:
    """Return logits and features of the artifacts of each space, N x shape."""
    on_cpu = device == "cpu"
    layers, given = network.last_layers(), dict[tuple[int, int], Tensor]()

    def keep(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: given.__setitem__((get_ident(), number), inputs[0])

    @torch.inference_mode()
    def asked(rows: slice) -> list[np.ndarray]:
        some = [np.ascontiguousarray(a[rows]) for a in artifacts]
        found = network([torch.from_numpy(a).float().to(device) for a in some])
        features = [given.pop((get_ident(), n)) for n in range(len(layers))]
        return [part.float().cpu().numpy() for part in (found, *features)]

    hooks = [layer.register_forward_pre_hook(keep(n)) for n, layer in enumerate(layers)]
    try:
        most = batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
        made = in_batches(asked, len(artifacts[0]), most, None if on_cpu else 1)
    finally:
        for hook in hooks:
            hook.remove()
    found, *features = (np.concatenate(one) for one in zip(*made, strict=True))
    return Outputs(found, features)
