"""The attribution network: heads that each look at one input, fused early or late.

An input is the artifacts of images in one space. A head looks at it as it is or through a fixed
filter. Maps, C x H x W, go to a torchvision classifier with a stem that suits their size, or to a
compact network at full resolution; vectors, d, to a linear discriminant, to correlations with the
mean of each class, to votes of the nearest training vectors, or to a residual MLP (Gorishniy et
al., "Revisiting deep learning models for tabular data", NeurIPS 2021, section 3.2).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from manifpt.attribution.model.attributor_format import DesignCard
from manifpt.attribution.model.compact import COMPACT, compact_network
from manifpt.attribution.model.correlation import CORRELATION, StandardisedRows
from manifpt.attribution.model.fusion import fused_log_probabilities
from manifpt.attribution.model.highpass import HighPass
from manifpt.attribution.model.neighbours import NEIGHBOURS, neighbour_layers
from manifpt.attribution.unknown.known import Outputs
from manifpt.baselines.yu19 import YU19, yu19_network
from manifpt.nets.backbone import build_backbone, choose_stem, last_layer, without_head
from manifpt.nets.device import CPU_BATCH, in_batches

FUSIONS = ("late", "early")
MLP, LDA = "mlp", "lda"
CLOSED_FORM = (LDA, CORRELATION, NEIGHBOURS)
MLP_WIDTH, MLP_BLOCKS, MLP_DROPOUT = 512, 2, 0.3
EARLY_DROPOUT = 0.2
# A feature that hardly varies among training artifacts must not be blown up at another image.
LEAST_STD = 1e-6
GPU_BATCH = 256


@dataclass(frozen=True)
class Head:
    """The design of a head: the number of its input, a fixed filter, and a trunk.

    ``trunk`` is ``compact``, ``yu19``, the name of a torchvision classifier, whose ``stem`` counts,
    or of vectors ``mlp``, ``lda``, ``correlation`` or ``knn``; ``coordinates`` is the number of
    those of the last three.
    """

    reads: int
    trunk: str
    stem: str = "auto"
    highpass: bool = False
    coordinates: int = 0

    @property
    def is_trained(self) -> bool:
        """Tell whether gradients train it; the others are fitted in one step."""
        return self.trunk not in CLOSED_FORM

    def describe(self, shape: Sequence[int]) -> str:
        """Describe the classifier of inputs of a shape in words."""
        names = {
            COMPACT: "compact network",
            YU19: "network of Yu et al.",
            MLP: "residual MLP",
            LDA: "linear discriminant",
            CORRELATION: "correlation with class means",
            NEIGHBOURS: "votes of the nearest vectors",
        }
        resnet = f"{self.trunk}, stem {choose_stem(self.stem, shape[-1])}"
        return ("high-pass, " if self.highpass else "") + names.get(self.trunk, resnet)


@dataclass(frozen=True)
class Design:
    """The design of a network; with its weights it is all that inference needs.

    ``shapes`` are those of the inputs. With ``fusion`` ``late`` each head has logits of its own and
    their calibrated log-probabilities are added up; with ``early`` the heads' features are joined
    in one last layer.
    """

    shapes: tuple[tuple[int, ...], ...]
    classes: int
    heads: tuple[Head, ...]
    fusion: str = "late"

    @property
    def is_early(self) -> bool:
        """Tell whether several heads are joined in one last layer."""
        return self.fusion == "early" and len(self.heads) > 1

    @property
    def discriminants(self) -> list[int]:
        """The numbers of the heads in closed form, with last layers of their own."""
        return [] if self.is_early else [n for n, h in enumerate(self.heads) if not h.is_trained]

    def card(self) -> DesignCard:
        """Return it as JSON values."""
        card: Any = asdict(self)
        return card

    @classmethod
    def from_card(cls, card: DesignCard) -> "Design":
        """Return the design that a manifest carries.

        Earlier versions had one head an input, and one backbone for all maps.
        """
        shapes = tuple(map(tuple, card["shapes"]))
        if "heads" not in card:
            rest: Any = {name: value for name, value in card.items() if name != "shapes"}
            return cls.of(shapes, **rest)
        heads = tuple(Head(**head) for head in card["heads"])
        return cls(shapes, card["classes"], heads, card["fusion"])

    @classmethod
    def of(
        cls,
        shapes: Sequence[tuple[int, ...]],
        classes: int,
        backbone: str = "resnet50",
        stem: str = "auto",
        fusion: str = "late",
        vectors: str = MLP,
    ) -> "Design":
        """Return one head an input: ``backbone`` for maps, ``vectors`` for vectors."""
        heads = []
        for n, shape in enumerate(shapes):
            if len(shape) == 3:
                heads.append(Head(n, backbone, stem))
            else:
                counts = {
                    LDA: min(shape[0], classes - 1),
                    CORRELATION: classes,
                    NEIGHBOURS: classes,
                }
                heads.append(Head(n, vectors, coordinates=counts.get(vectors, 0)))
        return cls(tuple(shapes), classes, tuple(heads), fusion)

    def part(self, heads: Sequence[int]) -> tuple["Design", list[int]]:
        """Return the design of some heads alone, and the numbers of the inputs that it has."""
        inputs = sorted({self.heads[n].reads for n in heads})
        chosen = tuple(
            replace(self.heads[n], reads=inputs.index(self.heads[n].reads)) for n in heads
        )
        return replace(self, shapes=tuple(self.shapes[n] for n in inputs), heads=chosen), inputs

    def head_names(self, names: Sequence[str]) -> list[str]:
        """Return the names of the heads, whose inputs have those names."""
        return [names[h.reads] + (" high-pass" if h.highpass else "") for h in self.heads]

    def describe(self, names: Sequence[str]) -> str:
        """Describe the classifiers of the inputs of those names, and their fusion."""
        parts = [
            f"{names[h.reads]} {' x '.join(map(str, self.shapes[h.reads]))} -> "
            + h.describe(self.shapes[h.reads])
            for h in self.heads
        ]
        return "; ".join(parts) + (f"; {self.fusion} fusion" if len(parts) > 1 else "")


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


def residual_mlp(features: int, classes: int) -> nn.Sequential:
    """Return a residual MLP, B x features -> B x classes."""
    blocks = [ResidualBlock(MLP_WIDTH) for _ in range(MLP_BLOCKS)]
    last = nn.Linear(MLP_WIDTH, classes)
    return nn.Sequential(
        nn.Linear(features, MLP_WIDTH), *blocks, nn.LayerNorm(MLP_WIDTH), nn.ReLU(), last
    )


def linear_discriminant(features: int, coordinates: int, classes: int) -> nn.Sequential:
    """Return the layers of a discriminant analysis, B x features -> B x classes (see there)."""
    return nn.Sequential(
        nn.Linear(features, coordinates, bias=False), nn.Linear(coordinates, classes)
    )


class BranchNetwork(nn.Module):
    """Normalises one input, a channel or a number, and classifies it as one head.

    The normalisation is that of the training artifacts and travels with the weights; filtered maps
    have a scale of their own. Without ``classes`` it returns features, B x ``width``.
    """

    def __init__(self, shape: tuple[int, ...], classes: int | None, head: Head) -> None:
        super().__init__()
        ones = (1,) * (len(shape) - 1)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(1, shape[0], *ones))
        self.register_buffer("std", torch.ones(1, shape[0], *ones))
        self.filter = HighPass() if head.highpass else None
        channels = self.filter.channels(shape[0]) if self.filter else shape[0]
        if head.trunk == LDA:
            self.trunk: nn.Module = linear_discriminant(channels, head.coordinates, classes or 1)
        elif head.trunk == CORRELATION:
            layers = linear_discriminant(channels, head.coordinates, classes or 1)
            self.trunk = StandardisedRows(*layers)
        elif head.trunk == NEIGHBOURS:
            self.trunk = neighbour_layers(channels, head.coordinates, classes or 1)
        elif head.trunk == MLP:
            self.trunk = residual_mlp(channels, classes or 1)
        elif head.trunk == COMPACT:
            self.trunk = compact_network(channels, classes or 1)
        elif head.trunk == YU19:
            self.trunk = yu19_network(channels, classes or 1, min(shape[1:]))
        else:
            stem = choose_stem(head.stem, shape[-1])
            self.trunk = build_backbone(head.trunk, classes or 1, channels, stem)
        self.width = last_layer(self.trunk)[1].in_features
        if not classes:
            self.trunk = without_head(self.trunk)

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take over the moments of the training artifacts, one a channel."""
        self.mean.copy_(torch.tensor(mean).view_as(self.mean))
        self.std.copy_(torch.tensor(std).view_as(self.std).clamp_min(LEAST_STD))

    def forward(self, artifacts: Tensor) -> Tensor:
        """Return B x classes logits, or B x width features."""
        if self.filter is not None:
            values: Tensor = self.trunk(self.filter(artifacts))
            return values
        out: Tensor = self.trunk((artifacts - self.mean) / self.std)
        return out


class AttributionNetwork(nn.Module):
    """Maps the inputs to logits, B x heads x classes, and fuses the heads.

    With early fusion there is one last layer, and one column of logits.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.design = design
        each = None if design.is_early else design.classes
        self.branches = nn.ModuleList(
            BranchNetwork(design.shapes[head.reads], each, head) for head in design.heads
        )
        self.together = None
        if design.is_early:
            width = sum(int(branch.width) for branch in self.branches)  # type: ignore[arg-type,misc]
            self.together = nn.Sequential(
                nn.Dropout(EARLY_DROPOUT), nn.Linear(width, design.classes)
            )
        heads = 1 if design.is_early else len(design.heads)
        self.weights: Tensor
        self.register_buffer("weights", torch.full((heads,), 1.0 / heads))

    def forward(self, artifacts: Sequence[Tensor]) -> Tensor:
        """Return B x heads x classes logits of the inputs."""
        heads = zip(self.branches, self.design.heads, strict=True)
        parts = [branch(artifacts[head.reads]) for branch, head in heads]
        if self.together is not None:
            parts = [self.together(torch.cat(parts, 1))]
        return torch.stack(parts, 1)

    def last_layers(self) -> list[nn.Linear]:
        """Return the last layer of each head, whose input are the head's features."""
        if self.together is not None:
            return [last_layer(self.together)[1]]
        return [last_layer(branch)[1] for branch in self.branches]

    def fuse(self, logits: Tensor) -> Tensor:
        """Return B x classes log-probabilities: those of the heads, weighted and added up."""
        return fused_log_probabilities(logits.float(), self.weights)


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
        inputs = [np.require(a[rows], requirements=("C", "W")) for a in artifacts]  # as torch wants
        logits = network([torch.from_numpy(a).float().to(device) for a in inputs])
        features = [given.pop((get_ident(), n)) for n in range(len(layers))]
        return [part.float().cpu().numpy() for part in (logits, *features)]

    hooks = [layer.register_forward_pre_hook(keep(n)) for n, layer in enumerate(layers)]
    try:
        most = batch_size or (CPU_BATCH if on_cpu else GPU_BATCH)
        batches = in_batches(asked, len(artifacts[0]), most, None if on_cpu else 1)
    finally:
        for hook in hooks:
            hook.remove()
    logits, *features = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return Outputs(logits, features)
