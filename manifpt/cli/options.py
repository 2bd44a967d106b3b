"""Options that several jobs share, and that a sweep may choose: spaces, projections, trainings."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from manifpt.images.tiles import MOST, USUAL

if TYPE_CHECKING:
    from manifpt.attribution.model.recipe import Options as Training
    from manifpt.attribution.unknown.decision import Rule
    from manifpt.images.sources import Reading
    from manifpt.manifold.projector import Projection
    from manifpt.spaces import Options as Spaces


class DryRunOptions(BaseModel):
    """What jobs that can say beforehand what they will do have."""

    dry_run: bool = Field(
        False,
        description="write nothing; print what the job would read, its stages and processes, "
        "where manifolds would lie, and what nodes cost at the given prices",
    )
    measurements: str | None = Field(
        None,
        description="--dry-run of build_manifold and attribute: file of manifpt plan --measure, by "
        "which it tells the seconds and the cost of the job",
    )


Tiles = Annotated[int | None, Field(ge=0, le=MOST)]


class SpaceOptions(BaseModel):
    """What images are embedded in, and what is near there."""

    space: str = Field(
        "rgb",
        description="rgb, freq, residual, sl, ssl, or several at once, each a manifold: rgb+sl",
    )
    image_size: int | None = Field(
        None, ge=4, description="side in pixels; the images' own, at most 64, if not given"
    )
    tiles: Tiles = Field(
        None,
        description="rgb, freq: a larger image becomes at most this number of native tiles, not "
        f"resized; 0 resizes it; {USUAL} if not given (a sweep: 0)",
    )
    metric: Literal["euclidean", "cosine", "whitened"] = Field(
        "euclidean",
        description="what is near: vectors, their directions, or vectors by Mahalanobis distance",
    )
    reals: int | None = Field(
        None, ge=2, description="of a manifold given as --input, a random sample of this size"
    )
    freq_eps: float | None = Field(
        None, gt=0, description="freq: added to magnitudes; 8-bit rounding noise if not given"
    )
    freq_log: bool = Field(True, description="freq: take the logarithm of magnitudes")
    sl_network: str = Field(
        "resnet50",
        description="sl: a torchvision classifier, or an encoder as timm:NAME or open_clip:NAME",
    )
    sl_weights: str | None = Field(
        None,
        description="sl: file of its weights, local, s3:// or gs://, if not torchvision's; hub or "
        "hub:TAG lets timm or open_clip download theirs",
    )
    ssl_network: str = Field("resnet50", description="ssl: as --sl-network")
    ssl_weights: str | None = Field(
        None, description="ssl: file of Barlow Twins weights, or output of pretrain_embedding"
    )
    layer: str | None = Field(
        None, description="sl, ssl: an inner layer, such as layer2; before the last if not given"
    )
    pooled: bool = Field(True, description="sl, ssl: average the layer's map over places")
    layer_summary: Literal["mean", "deviation", "gram"] = Field(
        "mean",
        description="sl, ssl: of a pooled --layer, the channels' means; these and their standard "
        "deviations; or the products of channels",
    )
    network_size: int | None = Field(
        None,
        ge=16,
        description="sl, ssl: side that images are resized to; 224, or what timm or open_clip say, "
        "if not given",
    )
    precision: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="sl, ssl: of the network; float16 on GPUs, float32 on CPUs"
    )

    @property
    def spaces(self) -> "Spaces":
        """The options of spaces."""
        from manifpt.spaces import Options

        names = set(Options.__dataclass_fields__) & set(type(self).model_fields)
        given = {name: getattr(self, name) for name in names}
        return Options(**given, eps=self.freq_eps, log=self.freq_log)


class SplitOptions(BaseModel):
    """How images that declare no split are split."""

    split_by: str | None = Field(
        None,
        description="put images of one value of this metadata column, as prompt or account, or of "
        "one folder (folder), into one split; by their content if not given",
    )


class LabelOptions(BaseModel):
    """Which columns of Parquet, tables and the JSON of tars say what images are."""

    source_column: str | None = Field(
        None,
        description="the column of sources, its reals called real; source, or what data sets of the"
        " field have, if not given",
    )
    split_column: str | None = Field(
        None,
        description="the column of splits: train, val or validation, test; others count as none; "
        "split if not given",
    )

    @property
    def labels(self) -> "Reading":
        """The way of reading asked for."""
        from manifpt.images.sources import Reading

        return Reading(source_column=self.source_column, split_column=self.split_column)


class InputOptions(LabelOptions):
    """How inputs are read, where their files do not say."""

    columns: tuple[str, ...] = Field(
        (), description="metadata of the input that travel to the output, by their names there"
    )
    image_column: str | None = Field(
        None,
        description="of Parquet, the column of image bytes; found by name or type if not given",
    )
    id_column: str | None = Field(
        None,
        description="of Parquet and tables of URIs, the column of ids; id or key of Parquet, "
        "else the row's number, if not given",
    )
    uri_column: str | None = Field(
        None,
        description="of tables, the column of URIs; url, uri, path, image_url, ... if not given",
    )
    allow_private_addresses: bool = Field(
        False, description="let http(s) URIs lead to private, loopback and reserved addresses"
    )
    allow_buckets: tuple[str, ...] = Field(
        (),
        description="buckets that a table of URIs in a bucket may name besides that; a local table "
        "is taken for your own, and may name any",
    )
    allow_local: bool = Field(
        False,
        description="let a table of URIs in a bucket name local files; a local table may name any",
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
    """What the nearest real point x* is."""

    projector: Literal["nearest", "mean", "tangent", "riemannian", "denoiser", "none"] = Field(
        "nearest",
        description="x* from neighbours: the nearest, their mean, their affine hull, or their "
        "centre of mass in a learned geometry; denoiser: what a denoiser that has seen reals alone "
        "makes of the image; none takes the embedding itself, a space's baseline",
    )
    neighbors: int | None = Field(
        None, ge=1, description="how many; if not given 1 for nearest, 16 for tangent, else 8"
    )
    ridge: float = Field(
        0.1, gt=0, description="tangent: regularisation, relative to the neighbours' mean variance"
    )

    @property
    def projection(self) -> "Projection":
        """The projection asked for."""
        from manifpt.manifold.projector import projection_of

        return projection_of(self.projector, self.neighbors, self.ridge)


class PlainOptions(BaseModel):
    """Spaces that images are embedded in without a manifold."""

    space: str | None = Field(
        None,
        description="spaces without a manifold, alone or beside --manifold: image, the images "
        "themselves, or another that needs no weights, or several: image+freq",
    )
    image_size: int | None = Field(
        None, ge=4, description="--space: side in pixels; the images' own, at most 64"
    )
    tiles: Tiles = Field(
        None,
        description="--space: the most native tiles of a larger image; 0 resizes it; those "
        f"of the manifold, else {USUAL}, if not given",
    )

    @property
    def plain(self) -> tuple[str, ...]:
        """The names of those spaces."""
        return tuple(self.space.split("+")) if self.space else ()


class DecisionOptions(BaseModel):
    """When an attributor says generator or real, unknown or unsure."""

    sure: float = Field(
        0.5, ge=0, le=1, description="decision: least probability of an answer, else unsure"
    )
    false_rejection: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="decision: share of known classes' images that may be called unknown; 0 for "
        "never",
    )

    @property
    def rule(self) -> "Rule":
        """The rule asked for."""
        from manifpt.attribution.unknown.decision import Rule

        return Rule(self.sure, self.false_rejection)


class TrainingOptions(BaseModel):
    """How an attributor is trained."""

    fusion: Literal["late", "early"] = Field(
        "late",
        description="of several heads: calibrated scores added up, or features in one last layer",
    )
    backbone: str = Field(
        "auto",
        description="of maps: compact, a small network at full resolution, or a torchvision "
        "classifier; auto is resnet50 on GPUs, else compact",
    )
    stem: Literal["auto", "full", "half", "standard"] = Field(
        "auto",
        description="resolution that the stem of a ResNet keeps: full, half, a quarter (standard); "
        "auto takes full up to 48 pixels and half up to 112",
    )
    vectors: Literal["lda", "mlp"] = Field(
        "lda",
        description="of vectors: linear discriminant analysis, its shrinkage by validation, or a "
        "residual MLP",
    )
    highpass: Literal["no", "also", "only"] = Field(
        "no",
        description="of the space image: put a head on fixed high-pass residuals of the pixels, "
        "beside the one on pixels or alone",
    )
    steps: int | None = Field(
        None, ge=1, description="gradient steps, in whole epochs; 4000 if --epochs is not given"
    )
    epochs: int | None = Field(None, ge=1, description="instead of --steps: passes over the images")
    batch_size: int = Field(64, ge=2, description="images a step, over all workers")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="AdamW's, at its peak; if not given 0.002 for compact and 0.0007 for others, "
        "times the square root of --batch-size / 64",
    )
    weight_decay: float = Field(0.05, ge=0, description="AdamW's")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that is spread")
    augment: Literal["cutmix", "none", "mirror", "shift"] = Field(
        "cutmix",
        description="of maps: in half of the batches, cutmix pastes a rectangle of another image, "
        "with its share of the label; mirror mirrors at random, and shift moves maps of pixels, "
        "too, which both change the phase of a generator's upsampling",
    )
    patience: int = Field(
        0,
        ge=0,
        description="stop after this number of epochs without a better validation; 0: never, since "
        "the last epochs, of low rates, decide",
    )
    seed: int = Field(0, ge=0, description="of weights, order and augmentation")

    @property
    def training(self) -> "Training":
        """The training asked for."""
        from manifpt.attribution.model.recipe import Options

        return Options(**{name: getattr(self, name) for name in Options.__dataclass_fields__})
