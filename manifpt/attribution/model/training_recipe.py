"""The options of an attributor's training: its heads, its budget, and its optimisation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from manifpt.artifacts.branches import ArtifactBranch
from manifpt.attribution.model.compact import COMPACT
from manifpt.attribution.model.network import LDA, Design, Head
from manifpt.baselines.yu19 import YU19
from manifpt.errors import ManifptError
from manifpt.nets.backbone import check_backbone

STEPS = 4000
# Steps of an epoch, at least: each ends with a validation and a checkpoint.
LEAST_STEPS = 100
# Peak learning rates of AdamW for batches of 64. Other batches take the square root of their
# ratio, which keeps the noise of an adaptive method alike (Malladi et al., "On the SDEs and scaling
# rules for adaptive gradient algorithms", NeurIPS 2022).
RATE, COMPACT_RATE, RATE_BATCH = 7e-4, 2e-3, 64


@dataclass(frozen=True)
class Length:
    """The length of a training: ``epochs`` of ``passes`` over its images."""

    epochs: int
    passes: int = 1


@dataclass(frozen=True)
class TrainingRecipe:
    """The options of a training; see the job's help for the meaning of each."""

    backbone: str = "auto"
    stem: str = "auto"
    vectors: str = LDA
    highpass: str = "no"
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    patience: int = 0
    seed: int = 0
    fusion: str = "late"
    augment: str = "cutmix"
    mixed_share: float = 0.5

    def resolved(self, *, gpu: bool) -> "TrainingRecipe":
        """Return the options with a choice for those left open; raise where they contradict."""
        if self.steps and self.epochs:
            raise ManifptError("--steps: goes without --epochs; give one of them")
        backbone = self.backbone
        if backbone == "auto":
            backbone = "resnet50" if gpu else COMPACT
        if backbone not in (COMPACT, YU19):
            check_backbone(backbone)
        peak = COMPACT_RATE if backbone == COMPACT else RATE
        return replace(
            self,
            backbone=backbone,
            steps=self.steps or (None if self.epochs else STEPS),
            learning_rate=self.learning_rate or peak * math.sqrt(self.batch_size / RATE_BATCH),
        )

    def budget(self, rows: int) -> Length:
        """Return the length of the training on ``rows`` images."""
        if self.epochs:
            return Length(self.epochs)
        pass_steps = max(1, rows // self.batch_size)
        passes = math.ceil(LEAST_STEPS / pass_steps)
        return Length(max(1, round((self.steps or STEPS) / (passes * pass_steps))), passes)

    def design(self, branches: Sequence[ArtifactBranch], classes: int) -> Design:
        """Return the network for the artifacts of some spaces.

        The space ``image`` may have a head on its high-pass residuals, beside its own or alone.
        """
        shapes = tuple(tuple(branch.manifest["shape"]) for branch in branches)
        whole = Design.of(
            shapes, classes, self.backbone, self.stem, self.fusion, vectors=self.vectors
        )
        heads: list[Head] = []
        for head in whole.heads:
            is_image = branches[head.reads].manifest["space"]["name"] == "image"
            if not is_image or self.highpass != "only":
                heads.append(head)
            if is_image and self.highpass != "no":
                heads.append(replace(head, highpass=True))
        if self.highpass != "no" and not any(head.highpass for head in heads):
            raise ManifptError("--highpass: filters images; add the space image to --input")
        if self.fusion == "early" and len(heads) > 1 and not all(h.is_trained for h in heads):
            raise ManifptError("--fusion early: trains all heads at once; choose --vectors mlp")
        return replace(whole, heads=tuple(heads))
