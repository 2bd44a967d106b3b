"""Options that several jobs share, and that a sweep may choose: spaces, projections, trainings."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from manifpt.images.tiles import MOST, USUAL

if TYPE_CHECKING:
    from manifpt.attribution.model.training_recipe import TrainingRecipe
    from manifpt.attribution.unknown.decision import Rule
    from manifpt.images.sources import Reading
    from manifpt.manifold.projector import Projection
    from manifpt.spaces import SpaceSettings


class DryRunOptions(BaseModel):
    """The options of jobs that have a dry run."""

    dry_run: bool = Field(
        False,
        description="write nothing; print the inputs, stages and processes of the job, the "
        "place of its manifolds, and the cost of the nodes at the given prices",
    )
    measurements: str | None = Field(
        None,
        description="for --dry-run of build_manifold and attribute: a file of manifpt plan "
        "--measure, from which the seconds and the cost of the job are estimated",
    )


Tiles = Annotated[int | None, Field(ge=0, le=MOST)]


class SpaceOptions(BaseModel):
    """The options of embedding spaces and of their metric."""

    space: str = Field(
        "rgb",
        description="rgb, freq, residual, sl, ssl, or a published baseline such as durall20; "
        "rgb+sl makes one manifold for each of several spaces",
    )
    image_size: int | None = Field(
        None,
        ge=4,
        description="side of images in pixels; if not given, that of the images, at most 64",
    )
    tiles: Tiles = Field(
        None,
        description="rgb, freq: cut a larger image into at most this number of tiles of native "
        f"pixels; 0 resizes it instead; {USUAL} if not given (in a sweep 0)",
    )
    metric: Literal["euclidean", "cosine", "whitened"] = Field(
        "euclidean",
        description="distance between vectors: Euclidean, cosine, or Mahalanobis (whitened)",
    )
    reals: int | None = Field(
        None,
        ge=2,
        description="if --input is a manifold: take a random sample of this size from its reals",
    )
    freq_eps: float | None = Field(
        None,
        gt=0,
        description="freq: constant that is added to magnitudes; if not given, the level of "
        "8-bit rounding noise",
    )
    freq_log: bool = Field(True, description="freq: take the logarithm of magnitudes")
    sl_network: str = Field(
        "resnet50",
        description="sl: a torchvision classifier, or an encoder as timm:NAME or open_clip:NAME",
    )
    sl_weights: str | None = Field(
        None,
        description="sl: file of weights, local, s3://, gs:// or az://; if not given, "
        "torchvision's weights; hub or hub:TAG downloads those of timm or open_clip",
    )
    ssl_network: str = Field("resnet50", description="ssl: network, as for --sl-network")
    ssl_weights: str | None = Field(
        None, description="ssl: file of Barlow Twins weights, or the output of pretrain_embedding"
    )
    layer: str | None = Field(
        None,
        description="sl, ssl: inner layer to use, such as layer2; if not given, the features "
        "before the last layer",
    )
    pooled: bool = Field(True, description="sl, ssl: average the layer's map over all places")
    layer_summary: Literal["mean", "deviation", "gram"] = Field(
        "mean",
        description="sl, ssl: how a pooled --layer becomes a vector: means of the channels, "
        "means and standard deviations (deviation), or products of channels (gram)",
    )
    network_size: int | None = Field(
        None,
        ge=16,
        description="sl, ssl: side in pixels to which images are resized; if not given, 224, or "
        "the size that timm or open_clip prescribes",
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="sl, ssl: precision of the network; auto is float16 on GPUs and float32 on "
        "CPUs",
    )

    @property
    def spaces(self) -> "SpaceSettings":
        """The options of spaces."""
        from manifpt.spaces import SpaceSettings

        names = set(SpaceSettings.__dataclass_fields__) & set(type(self).model_fields)
        given = {name: getattr(self, name) for name in names}
        return SpaceSettings(**given, eps=self.freq_eps, log=self.freq_log)


class SplitOptions(BaseModel):
    """The options for splits of images that declare none."""

    split_by: str | None = Field(
        None,
        description="keep images with the same value of this metadata column (such as prompt or "
        "account), or in the same folder (folder), in one split; if not given, "
        "images are split by their content",
    )


class LabelOptions(BaseModel):
    """The options for the columns of labels in Parquet, tables and the JSON of tars."""

    source_column: str | None = Field(
        None,
        description="column of sources, in which reals are called real; if not given, source, "
        "or the usual column of known data sets",
    )
    split_column: str | None = Field(
        None,
        description="column of splits, with the values train, val or validation, and test; "
        "other values count as no split; if not given, split",
    )

    @property
    def labels(self) -> "Reading":
        """The way of reading asked for."""
        from manifpt.images.sources import Reading

        return Reading(source_column=self.source_column, split_column=self.split_column)


class InputOptions(LabelOptions):
    """The options of reading inputs."""

    columns: tuple[str, ...] = Field(
        (), description="metadata columns of the input to copy to the output, under the same names"
    )
    image_column: str | None = Field(
        None,
        description="column of image bytes in Parquet; if not given, found by name or type",
    )
    id_column: str | None = Field(
        None,
        description="column of ids in Parquet and tables of URIs; if not given, id or key in "
        "Parquet, else the number of the row",
    )
    uri_column: str | None = Field(
        None,
        description="column of URIs in tables; if not given, url, uri, path, image_url, ...",
    )
    allow_private_addresses: bool = Field(
        False,
        description="allow http(s) URIs that lead to private, loopback and reserved addresses",
    )
    allow_buckets: tuple[str, ...] = Field(
        (),
        description="further buckets that a table of URIs in a bucket may name, besides its "
        "own; a local table is trusted, and may name any bucket",
    )
    allow_local: bool = Field(
        False,
        description="allow a table of URIs in a bucket to name local files; a local table may "
        "name any file",
    )

    @property
    def reading(self) -> "Reading":
        """The way of reading asked for."""
        from manifpt.images.sources import Reading

        return Reading(
            self.image_column,
            self.id_column,
            self.uri_column,
            self.columns,
            self.allow_private_addresses,
            tuple(sorted(set(self.allow_buckets))),
            self.allow_local,
            self.source_column,
            self.split_column,
        )


class ProjectionOptions(BaseModel):
    """The options of the projection, the nearest real point x*."""

    projector: Literal["nearest", "mean", "tangent", "riemannian", "denoiser", "none"] = Field(
        "nearest",
        description="how x* is computed from neighbours: nearest, mean, tangent (their affine "
        "hull) or riemannian (their centre of mass in a learned geometry); "
        "denoiser: the output of a denoiser that was trained on reals only; none: "
        "no x*, the artifact is the embedding itself, as a baseline of the space",
    )
    neighbors: int | None = Field(
        None,
        ge=1,
        description="number of neighbours; if not given, 1 for nearest, 16 for tangent, else 8",
    )
    ridge: float = Field(
        0.1,
        gt=0,
        description="tangent: strength of the regularisation, relative to the mean variance of "
        "the neighbours",
    )

    @property
    def projection(self) -> "Projection":
        """The projection asked for."""
        from manifpt.manifold.projector import projection_of

        return projection_of(self.projector, self.neighbors, self.ridge)


class PlainOptions(BaseModel):
    """The options of spaces without a manifold."""

    space: str | None = Field(
        None,
        description="spaces to use without a manifold, alone or beside --manifold: image (the "
        "images themselves), another one without weights, or a published baseline such as "
        "durall20; image+freq uses both",
    )
    image_size: int | None = Field(
        None,
        ge=4,
        description="with --space: side of images in pixels; if not given, that of the images, "
        "at most 64",
    )
    tiles: Tiles = Field(
        None,
        description="with --space: largest number of tiles of native pixels from a larger "
        "image; 0 resizes it instead; if not given, the number of the manifold, "
        f"else {USUAL}",
    )

    @property
    def plain(self) -> tuple[str, ...]:
        """The names of those spaces."""
        return tuple(self.space.split("+")) if self.space else ()


class DecisionOptions(BaseModel):
    """The options of decisions: generator or real, unknown or unsure."""

    sure: float = Field(
        0.5,
        ge=0,
        le=1,
        description="decision: lowest probability of an answer; below it the decision is unsure",
    )
    false_rejection: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="decision: largest share of images of known classes that may be called "
        "unknown; 0 calls no image unknown",
    )

    @property
    def rule(self) -> "Rule":
        """The rule asked for."""
        from manifpt.attribution.unknown.decision import Rule

        return Rule(self.sure, self.false_rejection)


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
    stem: Literal["auto", "full", "half", "standard"] = Field(
        "auto",
        description="resolution that the stem of a ResNet keeps: full, half, or a quarter "
        "(standard); auto is full up to 48 pixels, half up to 112, else standard",
    )
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
    batch_size: int = Field(64, ge=2, description="images per step, over all workers")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of AdamW; if not given, 0.002 for compact and 0.0007 "
        "for other networks, times the square root of --batch-size / 64",
    )
    weight_decay: float = Field(0.05, ge=0, description="weight decay of AdamW")
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
    mixed_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="with --augment cutmix: share of the batches that are mixed; more helps where "
        "a network learns few images by heart, and takes more steps",
    )
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
