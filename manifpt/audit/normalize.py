"""Images of any encoding -> the same images stored alike: one decode, size, mode and encoder.

Traces in the pixels stay: an image that was a JPEG keeps its blocks. With ``jpeg`` all images are
compressed once more by the same tables, which hides weaker traces of that kind.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
from PIL import Image

from manifpt import storage
from manifpt.engine import chunk_work, pipeline, pools
from manifpt.engine.columns import ColumnTypes
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Reading, Selection, Unit, plan
from manifpt.images.decode import DecodeCard
from manifpt.images.ids import Keys, escaped
from manifpt.images.places import input_places
from manifpt.images.probe import natural_size
from manifpt.images.read import (
    IMAGES,
    ImageReader,
    is_own,
    metadata_of,
    pixels_of,
    unit_to_json,
)
from manifpt.images.sources import AS_FOUND, InputsCard, content_key, describe
from manifpt.outputs import claims
from manifpt.outputs.formats import Manifest, PartEntry, RowCounts

KIND = "normalized"
FOLDER = "images"
UNLABELLED = "unlabelled"  # the folder of images without a source
SUBSAMPLING = "4:2:0"
# Fields of the JSON beside an image, besides the columns of the input.
DECLARED = ("source", "split", "id", "uri")


class EncodingCard(TypedDict):
    """The encoding of all images in a manifest; PNG has neither quality nor subsampling."""

    format: str
    mode: str
    quality: NotRequired[int]
    subsampling: NotRequired[str]


class NormalizedManifest(Manifest, RowCounts):
    """The manifest of images that were stored alike; ``classes`` counts them by source."""

    classes: dict[str, int]
    decode: DecodeCard
    encoder: EncodingCard
    inputs: InputsCard
    files: list[PartEntry]


@dataclass(frozen=True)
class ImageEncoder:
    """The one encoder of all images: PNG without loss, or JPEG of a quality, 1 to 95."""

    jpeg: int | None = None

    @property
    def ending(self) -> str:
        """The ending of the files' names."""
        return "png" if self.jpeg is None else "jpg"

    def card(self) -> EncodingCard:
        """Return the encoding of images, for manifests."""
        if self.jpeg is None:
            return {"format": "PNG", "mode": "RGB"}
        return {
            "format": "JPEG",
            "mode": "RGB",
            "quality": self.jpeg,
            "subsampling": SUBSAMPLING,
        }

    def __call__(self, pixels: np.ndarray) -> bytes:
        """Return H x W x 3 uint8 pixels as the bytes of a file."""
        sink = io.BytesIO()
        image = Image.fromarray(pixels)
        if self.jpeg is None:
            image.save(sink, "PNG")
        else:
            image.save(sink, "JPEG", quality=self.jpeg, subsampling=SUBSAMPLING)
        return sink.getvalue()


@dataclass
class EncodingStage:
    """Images -> a WebDataset tar of each source: the image, and its metadata as JSON."""

    encoder: ImageEncoder

    @property
    def takes(self) -> ColumnTypes:
        """The columns of an images table."""
        return {name: IMAGES[name] for name in DECLARED} | {"image": None}

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """No tables: images are in tars."""
        return {}

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Return the tars of a table's rows, and the number of images of each source in them."""
        names = [*DECLARED, *metadata_of(table)]
        rows = table.select(names).to_pylist()
        by_source: dict[str, list[tuple[dict[str, object], bytes]]] = {}
        for row, pixels in zip(rows, pixels_of(table), strict=True):
            source = row["source"] or UNLABELLED
            by_source.setdefault(source, []).append((row, self.encoder(pixels)))
        tars = {
            storage.join(FOLDER, folder_name(source)): (self._tar(source, members), len(members))
            for source, members in by_source.items()
        }
        counts = {source: len(members) for source, members in by_source.items()}
        return chunk_work.Result({}, {"classes": counts}, tars)

    def _tar(self, source: str, members: Sequence[tuple[Mapping[str, Any], bytes]]) -> bytes:
        keys, sink = Keys(""), io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for row, data in members:
                key = keys.id(file_name(row["id"], source)).lstrip("/")
                facts = {name: value for name, value in row.items() if value is not None}
                text = json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()
                for ending, content in ((self.encoder.ending, data), ("json", text)):
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return sink.getvalue()


def folder_name(source: str) -> str:
    """Return the folder of a source, which names it where the output is an input."""
    name = escaped(source).replace("/", "%2F")
    return name.replace(".", "%2E", 1) if name.startswith(".") else name  # else it is hidden


def file_name(id: str, source: str) -> str:
    """Return the name of an image in a tar, without its ending: that of its file, as far as can be.

    A WebDataset sample has one name up to its first dot, so other dots become ``_``.
    """
    inside = id.removeprefix(f"{escaped(source)}/")
    folder, _, name = inside.rpartition("/")
    stem, _, ending = name.rpartition(".")
    short = stem if stem and ending.isalnum() and len(ending) <= 5 else name
    parts = [part for part in folder.split("/") if part not in {"", ".", ".."}]
    return "/".join([*parts, short.replace(".", "_") or "image"])


def normalize(
    inputs: Sequence[str],
    output: str,
    *,
    image_size: int | None = None,
    jpeg: int | None = None,
    columns: Sequence[str] = (),
    labels: Reading = AS_FOUND,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> NormalizedManifest:
    """Store all images of ``inputs`` alike, with their sources and splits; return the manifest.

    Args:
        inputs: ``URI`` or ``NAME=URI``.
        output: folder of ``images/SOURCE/*.tar``, itself an input of other jobs.
        image_size: side in pixels; the smallest of the commonest sides of the sources, if None.
        jpeg: quality of JPEG for all; PNG if None.
        columns: metadata of the input that stay with the images, such as prompts.
        labels: the columns that name sources and splits.
        demand: the number of processes.
        terms: whether to replace an output of other settings, or a run that seems alive.

    """
    output = storage.absolute(output)
    taken = [name for name in columns if is_own(name)]
    if taken:
        raise ManifptError(f"--columns {taken[0]}: every image has it anyway; leave it out")
    units = plan(inputs, labelled=True, reading=replace(labels, columns=tuple(columns)))
    size = image_size or smallest_size(units)
    rule, encoder = DecodeRule(size), ImageEncoder(jpeg)
    decode, encoded = rule.card(), encoder.card()
    key = storage.digest([content_key(units), {"decode": decode, "encoder": encoded}])
    pool = pools.pool(demand, uses_gpu=False)
    with claims.claim(output, KIND, key, apart=input_places(inputs, output), terms=terms) as claim:
        if claim.finished:
            return claim.finished
        read, build = ImageReader([rule], metadata=columns), partial(EncodingStage, encoder)
        specs = map(unit_to_json, units)
        records = pipeline.run("normalize", specs, read, build, output, pool)
        counts, classes = pipeline.totals(records), Counter[str]()
        for record in records:
            classes.update(record["facts"].get("classes", {}))
        if counts["ok"] == 0:
            claim.abandon()
            raise ManifptError(
                f"--input: none of {counts['rows_in']} images could be used "
                f"({counts['by_error']}); check the input"
            )
        body: NormalizedManifest = {
            **counts,
            "classes": dict(sorted(classes.items())),
            "decode": decode,
            "encoder": encoded,
            "inputs": describe(inputs, units),
            "files": pipeline.parts(records),
        }
        manifest = claim.publish(body)
        pipeline.clear_records(output)
        return manifest


def smallest_size(units: Sequence[Unit]) -> int:
    """Return the smallest of the sources' commonest sides: no image need be made larger."""
    by_source: dict[str | None, list[Unit]] = {}
    for unit in units:
        by_source.setdefault(unit.source, []).append(unit)
    return min(natural_size(some, Selection()) for some in by_source.values())
