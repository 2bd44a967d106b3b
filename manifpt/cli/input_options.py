"""The options of reading inputs: columns, places, sources and splits."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from manifpt.images.sources import Reading

LabelledImages = Annotated[
    tuple[str, ...],
    Field(
        min_length=1,
        description="images by source: folders, tars, Parquet or tables of URIs, local or s3://",
    ),
]
DeclaredSources = Annotated[
    tuple[str, ...],
    Field(
        description="use only images that declare one of these sources, such as those of a "
        "benchmark"
    ),
]
ResizingFilter = Annotated[
    Literal["bicubic", "lanczos", "bilinear"],
    Field(description="antialiased filter that resizes images of another size"),
]


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
