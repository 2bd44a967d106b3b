"""The options of spaces: with a manifold and its metric, without one, and projections."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from manifpt.images.tiles import MOST, USUAL

if TYPE_CHECKING:
    from manifpt.manifold.projector import Projection
    from manifpt.spaces import SpaceSettings

ImageSize = Annotated[
    int | None,
    Field(
        ge=4, description="side of images in pixels; if not given, that of the images, at most 64"
    ),
]
Tiles = Annotated[int | None, Field(ge=0, le=MOST)]


class NetworkOptions(BaseModel):
    """The options of the network of the space sl, which comparisons of spaces have, too."""

    sl_network: str = Field(
        "resnet50",
        description="sl: a torchvision classifier, or an encoder as timm:NAME or open_clip:NAME",
    )
    sl_weights: str | None = Field(
        None,
        description="sl: file of weights, local, s3://, gs:// or az://; if not given, "
        "torchvision's weights; hub or hub:TAG downloads those of timm or open_clip",
    )
    network_size: int | None = Field(
        None,
        ge=16,
        description="sl, ssl: side in pixels to which images are resized; if not given, 224, or "
        "the size that timm or open_clip prescribes",
    )


class SpaceOptions(NetworkOptions):
    """The options of embedding spaces and of their metric."""

    space: str = Field(
        "rgb",
        description="rgb, freq, residual, sl, ssl, or a published baseline such as durall20; "
        "rgb+sl makes one manifold for each of several spaces",
    )
    image_size: ImageSize = None
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
