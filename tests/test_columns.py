"""Stages work on the columns that they declare to take, and give those that they declare."""

from functools import partial

import handmade
import numpy as np
import pyarrow as pa
import pytest
from conftest import write_folder

from manifpt import storage
from manifpt.artifacts.artifact_stage import ArtifactStage
from manifpt.artifacts.branches import STORED, read_artifacts, read_branches, stored_columns
from manifpt.artifacts.export import EXPORTED
from manifpt.artifacts.projection import Target
from manifpt.attribution.crawl.stage import AttributeStage
from manifpt.audit.audit import PropertiesReader, PropertiesStage
from manifpt.audit.normalize import EncodingStage, ImageEncoder
from manifpt.engine import pipeline, pools
from manifpt.engine.columns import GivenColumns
from manifpt.errors import ManifptError
from manifpt.evaluation.robustness import RobustnessStage
from manifpt.evaluation.score_stage import ScoreStage
from manifpt.images import DecodeRule, Reading, plan
from manifpt.images.degrade import IDENTITY, Degradation, StrengthRange
from manifpt.images.degraded_copies import Augmentation
from manifpt.images.read import ImageReader, unit_to_json
from manifpt.manifold.embed import EmbedStage, TrainingReals
from manifpt.spaces import make_space
from manifpt.spaces.pretrain import SplitStage

SIZE = 16
PLAIN, TILED = DecodeRule(SIZE), DecodeRule(SIZE, tiles=4)


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """Some images of three sources; those of one are larger than a space's side."""
    folder = tmp_path_factory.mktemp("images")
    for kind, size in (("real", SIZE), ("stripes", 24), ("blocks", SIZE)):
        write_folder(folder / kind, kind, range(12), size)
    return plan([f"{folder}"], labelled=True, reading=Reading(columns=("prompt",)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return handmade.attributor(tmp_path_factory.mktemp("model") / "m")


def projector(rule=PLAIN, space="image"):
    return Target(make_space(space, rule.size), rule).projector_alone()


def table_of(units, *rules):
    """The images table, and nothing but what its reader declares."""
    reader = ImageReader(rules, metadata=("prompt",))
    tables = [table for unit in units for table in reader(unit_to_json(unit))]
    table = pa.concat_tables(tables)
    fits(table, reader.gives.columns)
    assert set(table.column_names) == set(reader.gives.columns)
    return table.drop_columns(["error", "message"])


def fits(table, columns):
    """Check that a table has columns, with their types."""
    given = GivenColumns(dict(zip(table.schema.names, table.schema.types, strict=True)), "it", "")
    given.check("test", columns)


def check(stage, table):
    """Check that a stage works on its columns alone, and what it gives; return the result."""
    fits(table, stage.takes)
    result = stage(table.select(list(stage.takes)))
    assert result.tables.keys() <= stage.gives.keys()
    for folder, made in result.tables.items():
        fits(made, stage.gives[folder])
    return result


def artifacts(units, spaces=("",)):
    """The test artifacts of images as a stage gives them, by space."""
    stage = ArtifactStage(dict.fromkeys(spaces, projector()), "test", False)
    tables = stage(table_of(units, PLAIN)).tables
    return [tables[f"{name}/test" if name else "test"] for name in spaces]


@pytest.mark.parametrize("rules", [(PLAIN,), (TILED,), (TILED, DecodeRule(24))])
@pytest.mark.parametrize("split_by", [None, "folder", "prompt"])
def test_artifacts(units, rules, split_by):
    projectors = {f"s{n}": projector(rule) for n, rule in enumerate(rules)}
    copies = Augmentation((StrengthRange.parse("jpeg"),))
    stage = ArtifactStage(projectors, "content", False, copies, split_by)
    assert check(stage, table_of(units, *rules)).tables


def test_artifacts_of_embeddings(units):
    stage = ArtifactStage({"": projector()}, "content", False, embedded=True)
    assert check(stage, *artifacts(units)).tables.keys() == {"test"}


@pytest.mark.parametrize("training", [None, TrainingReals(), TrainingReals("prompt")])
def test_embeddings(units, tmp_path, training):
    rules = (TILED, DecodeRule(24))
    spaces = [make_space("rgb", SIZE), make_space("rgb", 24)]
    check(EmbedStage(spaces, rules, 2, str(tmp_path), training), table_of(units, *rules))


@pytest.mark.parametrize("views", [(), (Degradation.parse(IDENTITY), Degradation.parse("jpeg:75"))])
@pytest.mark.parametrize("group_by", ["folder", "format", "prompt"])
def test_attributions(units, model, views, group_by):
    stage = AttributeStage(model, [projector()], ("prompt",), views=views, group_by=group_by)
    folders = check(stage, table_of(units, PLAIN)).tables.keys()
    assert folders == stage.gives.keys() == {"attributions", "evidence"}


def test_attributions_of_tiles(units, tmp_path):
    tiled = handmade.attributor(tmp_path / "m", tiles=4)
    check(AttributeStage(tiled, [projector(TILED)]), table_of(units, TILED))


def test_scores(units, model, tmp_path):
    (table,) = artifacts(units)
    assert check(ScoreStage(model, False), table).tables.keys() == {"scores"}


def test_robustness(units, model):
    stage = RobustnessStage(model, False, [projector()], (Degradation.parse("jpeg:75"),))
    assert check(stage, table_of(units, PLAIN)).tables.keys() == {"scores"}


@pytest.mark.parametrize("split_by", [None, "folder", "prompt"])
def test_properties(units, split_by):
    reader = PropertiesReader(PLAIN, ("prompt",))
    table = pa.concat_tables([t for unit in units for t in reader(unit_to_json(unit))])
    fits(table, reader.gives.columns)
    assert check(PropertiesStage(split_by), table).tables


def test_pixels_and_files(units):
    table = table_of(units, PLAIN)
    assert check(SplitStage(), table).tables
    assert len(check(EncodingStage(ImageEncoder()), table).tars) == 3


def test_artifacts_have_the_columns_that_later_jobs_take():
    stage = ArtifactStage({"": projector()}, "content", False)
    given = GivenColumns(stage.gives["test"], "artifacts", "make them again")
    again = ArtifactStage({"": projector()}, "content", False, embedded=True)
    for taken in (ScoreStage("", False).takes, again.takes, STORED, EXPORTED):
        given.check("test", taken)


def test_files_of_several_spaces_give_what_their_rows_have(units, tmp_path):
    uris = []
    for name, table in zip("ab", artifacts(units, ("a", "b")), strict=True):
        uris.append(f"{tmp_path}/{name}.parquet")
        storage.write_bytes(uris[-1], storage.parquet_bytes(table))
    given = stored_columns(uris)
    fits(read_branches(uris), given.columns)
    given.check("evaluate", ScoreStage("", False, spaces=2).takes)
    with pytest.raises(ManifptError, match=r"evaluate: .* has no column 'artifact_2'; make the "):
        given.check("evaluate", ScoreStage("", False, spaces=3).takes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop_columns(["pixel_sha256"]), "has no column 'pixel_sha256'"),
        (
            lambda t: t.set_column(2, "source", pa.array(np.arange(t.num_rows))),
            "has the column 'source' as int64, not string",
        ),
    ],
)
def test_a_foreign_file_is_one_line_before_anything_starts(units, model, tmp_path, change, said):
    uri, output = f"{tmp_path}/a.parquet", tmp_path / "out"
    storage.write_bytes(uri, storage.parquet_bytes(change(*artifacts(units))))
    remedy = "make the artifacts again with compute_artifacts"

    class Reader:
        gives = stored_columns([uri])

        def __call__(self, spec):
            raise AssertionError("a unit was read")

    build, pool = partial(ScoreStage, model, False), pools.pool(pools.HERE, uses_gpu=False)
    with pytest.raises(ManifptError) as caught:
        pipeline.run("evaluate", ["0"], Reader(), build, str(output), pool)
    assert str(caught.value) == f"evaluate: {uri} {said}; {remedy}"
    with pytest.raises(ManifptError) as caught:
        read_artifacts(uri)
    assert str(caught.value) == f"artifacts: {uri} {said}; {remedy}"
