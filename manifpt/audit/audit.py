"""Images by source -> the properties of their files -> whether these reveal the label.

The properties of each image go to ``properties/``; the statistics are of bounded samples of these
rows, which are always the same: those whose pixels have the smallest hashes. Exact copies are
therefore in a sample together or not at all.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa

from manifpt import storage
from manifpt.audit import property_report
from manifpt.audit.audit_format import AuditManifest, AuditReport
from manifpt.audit.properties import PROPERTIES, grey_levels, properties
from manifpt.audit.sample import nullable
from manifpt.audit.verdict import USUAL, Thresholds
from manifpt.engine import chunk_work, pipeline, pools, session
from manifpt.engine.columns import ColumnTypes, GivenColumns
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Selection, plan
from manifpt.images.perceptual import DISTANCE, perceptual_hashes
from manifpt.images.places import input_places
from manifpt.images.probe import natural_size, usual_tiles
from manifpt.images.raw import raw_images
from manifpt.images.read import IMAGES, row_of, unit_from_json, unit_to_json
from manifpt.images.sandbox import decode_all
from manifpt.images.sources import AS_FOUND, Reading, content_key, describe
from manifpt.images.splits import (
    CONTENT,
    check_column,
    reading_with_split,
    split_columns,
    splits_of,
    values_of,
)
from manifpt.outputs import claims
from manifpt.outputs.formats import FileEntry, PartEntry

KIND = "audit"
FOLDER = "properties"
REPORT, TEXT = "audit.json", "audit.md"
ROWS = 20_000
# Images of each class, even where a class has very many.
LEAST_ROWS = 100
# Images among which copies are looked for, by the rows of the statistics.
COMPARED = 10
# Images are looked at as an attributor sees them: whole up to this side, else as native tiles.
SIDE = 64
CHUNK_ROWS = 4096
# The columns of the table of properties besides PROPERTIES.
IDENTITY = ("id", "uri", "source", "split", "sha256", "pixel_sha256", "perceptual_hash")
VALUE = "value"


@dataclass(frozen=True)
class AuditSettings:
    """The settings of an audit: the sample, the distance of near images, and the thresholds."""

    rows: int = ROWS
    near_distance: int = DISTANCE
    split_by: str | None = None
    thresholds: Thresholds = USUAL


@dataclass(frozen=True)
class PropertiesReader:
    """Units given as text -> the images table with PROPERTIES instead of pixels."""

    rule: DecodeRule
    metadata: Sequence[str] = ()

    @property
    def gives(self) -> GivenColumns:
        """The columns of that table."""
        remedy = "name it as a column of the input (--split-by)"
        return GivenColumns(columns_of_properties(self.metadata), "the table of properties", remedy)

    def __call__(self, spec: str) -> Iterator[pa.Table]:
        """Yield the table of a unit, in chunks."""
        return read_properties(spec, self.rule)


def read_properties(text: str, rule: DecodeRule) -> Iterator[pa.Table]:
    """Yield the images table of a unit with PROPERTIES instead of pixels, in chunks."""
    unit = unit_from_json(text)
    rows: list[dict[str, Any]] = []
    raws = ((raw, raw.data or b"") for raw in raw_images(unit, rule))
    for raw, found in decode_all(raws, rule):
        row, pixels = row_of(raw, found, rule)
        facts = properties(raw.data or b"")
        if row["error"] is None and is_native(row, rule):
            facts["levels"] = grey_levels(pixels[0])
        # The decoder reports format and size for every format.
        rows.append(facts | {name: value for name, value in row.items() if value is not None})
        if len(rows) == CHUNK_ROWS:
            yield properties_table(rows, unit.reading.columns)
            rows = []
    if rows:
        yield properties_table(rows, unit.reading.columns)


def is_native(row: Mapping[str, Any], rule: DecodeRule) -> bool:
    """Tell whether an image's pixels by this rule are pixels that were stored."""
    sides = row["width"], row["height"]
    return min(sides) >= rule.size if rule.tiles else sides == (rule.size, rule.size)


def properties_table(rows: list[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
    """Build the table of some images' properties from their rows."""
    seen = [row for row in rows if "looks" in row]
    for row, value in zip(seen, perceptual_hashes([r.pop("looks") for r in seen]), strict=True):
        row["perceptual_hash"] = value
    return pa.Table.from_pylist(rows, schema=pa.schema(columns_of_properties(columns)))


def columns_of_properties(metadata: Sequence[str]) -> dict[str, pa.DataType]:
    """Return the columns of the table of properties of images with some metadata."""
    return IMAGES | dict.fromkeys(metadata, pa.string()) | PROPERTIES


@dataclass
class PropertiesStage:
    """Rows of properties -> those of the output, each with the split that a training would give."""

    split_by: str | None

    @property
    def takes(self) -> ColumnTypes:
        """The columns of the table of properties."""
        types = {name: IMAGES[name] for name in IDENTITY} | PROPERTIES
        return types | split_columns(self.split_by)

    @property
    def gives(self) -> Mapping[str, ColumnTypes]:
        """The columns of ``properties/``."""
        types = {name: IMAGES[name] for name in IDENTITY} | PROPERTIES
        return {FOLDER: types | ({} if self.split_by is None else {VALUE: pa.string()})}

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        """Return the table of ``properties/``, and the number of images of each class."""
        split, *_ = splits_of(table, CONTENT, self.split_by)
        values = [None] * len(table) if self.split_by is None else values_of(table, self.split_by)
        rows = table.select([*IDENTITY, *PROPERTIES])
        place = rows.column_names.index("split")
        rows = rows.set_column(place, "split", pa.array(split, pa.string()))
        if self.split_by is not None:
            rows = rows.append_column(VALUE, pa.array(values, pa.string()))
        counts = Counter(str(source) for source in rows["source"].to_pylist())
        return chunk_work.Result({FOLDER: rows}, {"classes": dict(counts)})


class RowSample:
    """At most ``rows`` rows of many tables: those whose pixels have the smallest hashes."""

    def __init__(self, rows: int) -> None:
        self.rows, self.kept = rows, pd.DataFrame()

    def add(self, table: pd.DataFrame) -> None:
        """Take the rows of a table in."""
        both = pd.concat([self.kept, table]) if len(self.kept) else table
        order = both.sort_values(["pixel_sha256", "id"], kind="stable")
        self.kept = order.head(self.rows).reset_index(drop=True)


def sampled(
    tables: Iterable[pd.DataFrame], rows: int, classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return rows of each class alike, for statistics, and rows of all, to compare for copies."""
    each = max(LEAST_ROWS, rows // len(classes))
    by_class, compared = {name: RowSample(each) for name in classes}, RowSample(COMPARED * rows)
    for table in tables:
        for name, some in table.groupby("source"):
            by_class[str(name)].add(some)
        compared.add(table[[n for n in (*IDENTITY, VALUE) if n in table]])
    return pd.concat([one.kept for one in by_class.values()], ignore_index=True), compared.kept


def examine(
    output: str, paths: Sequence[str], classes: dict[str, int], settings: AuditSettings
) -> AuditReport:
    """Return the report on the rows of properties at ``paths``; see ``report.summary``."""
    tables = (
        storage.read_parquet(storage.join(output, path)).to_pandas(types_mapper=nullable)
        for path in paths
    )
    rows, compared = sampled(tables, settings.rows, sorted(classes))
    findings = property_report.of_files(rows, settings.thresholds) + property_report.of_copies(
        compared, settings.near_distance, settings.thresholds, settings.split_by
    )
    about = property_report.properties_by_class(rows)
    return property_report.summary(
        findings,
        images=sum(classes.values()),
        sampled=len(rows),
        compared=len(compared),
        classes={name: {"images": classes[name], **about[name]} for name in sorted(classes)},
        thresholds=asdict(settings.thresholds),
    )


def audit(
    inputs: Sequence[str],
    output: str,
    settings: AuditSettings = AuditSettings(),
    *,
    labels: Reading = AS_FOUND,
    demand: pools.Demand = pools.ANY,
    terms: claims.Terms = claims.AS_IS,
) -> AuditManifest:
    """Audit the images of two or more sources and publish the report; return the manifest.

    ``labels`` says which columns name sources and splits. It raises ManifptError if there are fewer
    than two sources.
    """
    output = storage.absolute(output)
    taken = [*PROPERTIES, *chunk_work.QUARANTINE, VALUE]
    reading = reading_with_split(settings.split_by, taken, labels)
    units = plan(inputs, labelled=True, reading=reading)
    check_column(units, settings.split_by)
    size = min(SIDE, natural_size(units, Selection()))
    rule = DecodeRule(size, tiles=usual_tiles(units, Selection(), size))
    key = storage.digest([content_key(units), asdict(settings), rule.card()])
    pool = pools.pool(demand, uses_gpu=False)
    with claims.claim(output, KIND, key, apart=input_places(inputs, output), terms=terms) as claim:
        if claim.finished:
            return claim.finished
        read = PropertiesReader(rule, reading.columns)
        build = partial(PropertiesStage, settings.split_by)
        specs = map(unit_to_json, units)
        records = pipeline.run("audit", specs, read, build, output, pool)
        counts, classes = pipeline.totals(records), Counter[str]()
        for record in records:
            classes.update(record["facts"].get("classes", {}))
        if len(classes) < 2:
            claim.abandon()
            raise ManifptError(
                f"--input: {counts['ok']} of {counts['rows_in']} images could be used, of "
                f"{len(classes)} sources; an audit compares two or more, each NAME=URI"
            )
        files = pipeline.parts(records)
        found = _examined(output, files, dict(classes), settings, pool)
        texts = {REPORT: storage.json_bytes(found), TEXT: property_report.markdown(found).encode()}
        claim.check()
        written: list[FileEntry] = [
            {"path": name, **storage.write_bytes(storage.join(output, name), data)}
            for name, data in texts.items()
        ]
        body: AuditManifest = {
            **counts,
            **found,
            "inputs": describe(inputs, units),
            "files": [*files, *written],
        }
        manifest = claim.publish(body)
        pipeline.clear_records(output)
        return manifest


def _examined(
    output: str,
    files: Sequence[PartEntry],
    classes: dict[str, int],
    settings: AuditSettings,
    pool: pools.Pool,
) -> AuditReport:
    """Compute the report in a task of the cluster: the driver's machine may be small."""
    import ray

    paths = [file["path"] for file in files if file["folder"] == FOLDER]
    task = ray.remote(num_cpus=pool.num_cpus)(examine)
    with session.lost():
        return ray.get(task.remote(output, paths, classes, settings))
