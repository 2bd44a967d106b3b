"""The options of trainings."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from manifpt.attribution.model.training_recipe import TrainingRecipe
    from manifpt.audit.training_audit import Settings

# Options that several trainings have, some with defaults of their own.
BatchSize = Annotated[int, Field(ge=2, description="images per step, over all workers")]
LearningRate = Annotated[float, Field(gt=0, description="peak learning rate of AdamW")]
MixedShare = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="with --augment cutmix: share of the batches that are mixed; more helps where "
        "a network learns few images by heart, and takes more steps",
    ),
]
TrainingSteps = Annotated[int, Field(ge=1, description="steps of each training by gradients")]
WeightDecay = Annotated[float, Field(ge=0, description="weight decay of AdamW")]
Stem = Annotated[
    Literal["auto", "full", "half", "standard"],
    Field(
        description="resolution that the stem of a ResNet keeps: full, half, or a quarter "
        "(standard); auto is full up to 48 pixels, half up to 112, else standard",
    ),
]
Workers = Annotated[
    int | None,
    Field(
        ge=1,
        description="number of Ray Train workers; if not given, one per GPU, or without GPUs "
        "one per CPU, less one",
    ),
]


class AuditOptions(BaseModel):
    """The options of the audit before a training."""

    audit_images: int = Field(
        300,
        ge=0,
        description="number of images of each class whose file properties are audited before "
        "the training, for artifacts at most 300; 0 for no audit",
    )
    accept_biased: bool = Field(
        False,
        description="train although the audit fails, which the attributor's manifest, its model "
        "card and pages then say",
    )

    @property
    def audit(self) -> "Settings":
        """The audit asked for."""
        from manifpt.audit.training_audit import Settings

        return Settings(self.audit_images, self.accept_biased)


class TrainingOptions(BaseModel):
    """The options of an attributor's training."""

    fusion: Literal["late", "early"] = Field(
        "late",
        description="how several heads are combined: late adds up their calibrated scores, "
        "early joins their features in one last layer",
    )
    backbone: str = Field(
        "auto",
        description="network for maps: compact, a small network at full resolution, yu19, the "
        "attribution network of Yu et al. (ICCV 2019), or a torchvision classifier; auto is "
        "resnet50 on GPUs, else compact",
    )
    stem: Stem = "auto"
    vectors: Literal["lda", "mlp", "correlation", "knn"] = Field(
        "lda",
        description="classifier for vectors: linear discriminant analysis, whose shrinkage is "
        "chosen by validation, a residual MLP, correlation with the mean of each class, for "
        "the space marra19, or votes of the nearest training vectors (knn), whose number is "
        "chosen by validation",
    )
    highpass: Literal["no", "also", "only"] = Field(
        "no",
        description="for the space image: train a head on fixed high-pass residuals of the "
        "pixels, beside the head on pixels (also) or instead of it (only)",
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="number of gradient steps, rounded to whole epochs; 4000 if --epochs is not "
        "given",
    )
    epochs: int | None = Field(None, ge=1, description="passes over the images, instead of --steps")
    batch_size: BatchSize = 64
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of AdamW; if not given, 0.002 for compact and 0.0007 "
        "for other networks, times the square root of --batch-size / 64",
    )
    weight_decay: WeightDecay = 0.05
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label that is spread over all classes"
    )
    augment: Literal["cutmix", "none", "mirror", "shift", "patches"] = Field(
        "cutmix",
        description="augmentation of maps: cutmix pastes a rectangle of another image, in "
        "--mixed-share of the batches, and mixes the labels; mirror mirrors at random; shift also "
        "moves maps of pixels; mirror and shift change the phase of a generator's "
        "upsampling; patches trains on four random patches of each image, whose features a "
        "contrastive loss draws together by class (DNA-Det, Yang et al., AAAI 2022)",
    )
    mixed_share: MixedShare = 0.5
    patience: int = Field(
        0,
        ge=0,
        description="stop after this number of epochs without a better validation; 0 never "
        "stops early, since the last epochs, with low learning rates, matter most",
    )
    seed: int = Field(0, ge=0, description="seed of weights, order and augmentation")

    @property
    def training(self) -> "TrainingRecipe":
        """The training asked for."""
        from manifpt.attribution.model.training_recipe import TrainingRecipe

        return TrainingRecipe(
            **{name: getattr(self, name) for name in TrainingRecipe.__dataclass_fields__}
        )
