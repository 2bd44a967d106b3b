"""How data sets of the field name sources and splits: by folders, and by columns."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png, write_folder, write_tar

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Reading, plan
from manifpt.images.labels import split_of_shard
from manifpt.images.raw import raw_images
from manifpt.images.sources import MANIFOLD_REALS

RULE = DecodeRule(16)


def tree(root, *paths):
    """Write small files at these paths, and return the root as text."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"1")
    return str(root)


def found(*inputs, labelled=True, **planned):
    """Source, split and path of each file of some inputs."""
    units = plan(inputs, labelled=labelled, **planned)
    return sorted((unit.source, unit.split, name) for unit in units for name in unit.ids)


def rows(*inputs, labelled=True, columns=(), selection=None, **planned):
    """Source and split of each row of some inputs, by its id."""
    reading = Reading(columns=(), **{f"{name}_column": value for name, value in columns})
    given = {"labelled": labelled, "reading": reading, **planned}
    units = plan(inputs, selection, **given) if selection else plan(inputs, **given)
    keeps = selection.keeps if selection else lambda *_: True
    return {
        raw.id: (raw.source, raw.split)
        for unit in units
        for raw in raw_images(unit, RULE)
        if keeps(raw.source, raw.split)
    }


def test_a_generator_of_cnndetection(tmp_path, capsys):
    root = tree(tmp_path / "progan", "0_real/a.png", "1_fake/b.png", "README.md")
    expected = [("progan", None, "1_fake/b.png"), ("real", None, "0_real/a.png")]
    assert found(root) == expected
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "layout CNNDetection (0_real, 1_fake): 2 x source, progan, real" in said
    assert "1 x beside folders" in said
    named = [("gan", None, "gan/1_fake/b.png"), ("real", None, "gan/0_real/a.png")]
    assert found(f"gan={root}") == named


def test_classes_between_a_generator_and_its_pairs(tmp_path):
    classes = ("cat", "train")  # a class of ProGAN's is called train
    paths = [f"{c}/{f}/{c}.png" for c in classes for f in ("0_real", "1_fake")]
    root = tree(tmp_path / "progan", *paths)
    assert found(f"progan={root}") == [
        ("progan", None, "progan/cat/1_fake/cat.png"),
        ("progan", None, "progan/train/1_fake/train.png"),
        ("real", None, "progan/cat/0_real/cat.png"),
        ("real", None, "progan/train/0_real/train.png"),
    ]
    with pytest.raises(ManifptError, match=r"cat, train.*NAME=.*/progan .*progan/\* for gen"):
        found(root)


def test_a_folder_of_generators_with_and_without_classes(tmp_path):
    paths = ["biggan/0_real/1.png", "biggan/1_fake/2.png", "progan/cat/0_real/3.png"]
    root = tree(tmp_path / "testset", *paths, "progan/cat/1_fake/4.png")
    assert [(source, name) for source, _, name in found(root)] == [
        ("biggan", "biggan/1_fake/2.png"),
        ("progan", "progan/cat/1_fake/4.png"),
        ("real", "biggan/0_real/1.png"),
        ("real", "progan/cat/0_real/3.png"),
    ]


def test_genimage_and_its_splits(tmp_path):
    paths = [f"train/{f}/{f}.png" for f in ("ai", "nature")] + ["val/ai/v.png", "val/nature/v.png"]
    root = tree(tmp_path / "adm", *paths)
    expected = [
        ("adm", "train", "train/ai/ai.png"),
        ("adm", "validation", "val/ai/v.png"),
        ("real", "train", "train/nature/nature.png"),
        ("real", "validation", "val/nature/v.png"),
    ]
    assert found(root) == expected
    named = [("adm", None, "adm/ai/v.png"), ("real", None, "adm/nature/v.png")]
    assert found(f"adm={root}/val") == named
    with pytest.raises(ManifptError, match=r"of what\?; name it, NAME=PATH"):
        found(f"{root}/val")
    whole = tree(tmp_path / "genimage", *(f"ADM/imagenet_ai_adm/{path}" for path in paths))
    tree(tmp_path / "genimage", *(f"BigGAN/imagenet_ai_big/{path}" for path in paths))
    assert {source for source, _, _ in found(whole)} == {"ADM", "BigGAN", "real"}
    reals = plan([whole], MANIFOLD_REALS, source="real")
    names = sorted(name for unit in reals for name in unit.ids)
    assert [name.split("/")[0] for name in names] == ["ADM", "BigGAN"]
    assert all(name.endswith("train/nature/nature.png") for name in names)


@pytest.mark.parametrize("name", ["real", "Real", "REAL"])
def test_folders_of_classes_and_their_splits(tmp_path, name, capsys):
    root = tree(tmp_path / "own", f"{name}/1.png", "dalle/2.png", "sd/deep/3.png")
    assert [source for source, _, _ in found(root)] == ["dalle", "real", "sd"]
    assert "layout ImageFolder: 3 x source, dalle, real, sd" in capsys.readouterr().err
    root = tree(tmp_path / "cifake", *(f"{s}/{f}/1.png" for s in ("train", "test") for f in
                                       (name, "FAKE")))  # fmt: skip
    assert found(root) == [
        ("FAKE", "test", "test/FAKE/1.png"),
        ("FAKE", "train", "train/FAKE/1.png"),
        ("real", "test", f"test/{name}/1.png"),
        ("real", "train", f"train/{name}/1.png"),
    ]
    root = tree(tmp_path / "split", f"train/{name}/1.png", "train/a/1.png", "val/b/1.png")
    sources = {("real", "train"), ("a", "train"), ("b", "validation")}
    assert {(source, split) for source, split, _ in found(root)} == sources


@pytest.mark.parametrize(
    ("paths", "named", "said"),
    [
        (["0_real/1.png", "other/2.png"], "x=", "it holds other beside 0_real; give each folder"),
        (["a/0_real/1.png", "b/2.png"], "x=", "b has no 0_real/1_fake"),
        (["0_real/1.png", "1_fake/2.png"], "real=", "named real, and holds 1_fake"),
        (["train/1.png", "test/2.png"], "", "test is the name of a split"),
        (["train/val/ai/1.png", "train/val/nature/2.png"], "x=", "names two splits"),
        (["a/real/1.png", "a/fake/2.png"], "", r"a, ... may be generators or classes"),
        (["/".join("abcdef") + "/0_real/1.png", "1.png"], "x=", "in no known layout"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(tmp_path, paths, named, said):
    root = tree(tmp_path / "in", *paths)
    with pytest.raises(ManifptError, match=said) as error:
        found(f"{named}{root}")
    assert "\n" not in str(error.value)


def test_jobs_without_labels_read_all_as_it_is(tmp_path):
    root = tree(tmp_path / "in", "0_real/1.png", "1_fake/2.png", "odd/3.png")
    assert [source for source, _, _ in found(root, labelled=False)] == [None] * 3
    root = tree(tmp_path / "pair", "0_real/1.png", "1_fake/2.png")
    reals = [("real", None, "real/0_real/1.png")]
    assert found(f"real={root}", labelled=False, source="real") == reals


def features(**columns):
    """Hugging Face's metadata of a schema, for some columns of class labels."""
    labels = {name: {"names": names, "_type": "ClassLabel"} for name, names in columns.items()}
    info = {"info": {"features": {"image": {"_type": "Image"}, **labels}}}
    return {b"huggingface": json.dumps(info).encode()}


def parquet(path, columns, **labels):
    images = [{"bytes": png("real", n), "path": f"{n}.png"} for n in range(3)]
    table = pa.table({"image": images, **columns}).replace_schema_metadata(features(**labels))
    pq.write_table(table, path)
    return str(path)


def test_class_labels_of_hugging_face(tmp_path, capsys):
    path = parquet(tmp_path / "a.parquet", {"label": [1, 0, -1]}, label=["dalle", "Real"])
    assert list(rows(path).values()) == [("real", None), ("dalle", None), (None, None)]
    assert "sources by its column label (2 class labels)" in capsys.readouterr().err
    assert {source for source, _ in rows(f"x={path}").values()} == {"x"}
    assert {source for source, _ in rows(path, labelled=False).values()} == {None}
    shard = parquet(tmp_path / "test-00000-of-00001.parquet", {"label": [1, 0, 1]},
                    label=["ai", "nature"])  # fmt: skip
    assert list(rows(shard).values()) == [("real", "test"), ("ai", "test"), ("real", "test")]
    assert [source for source, _ in rows(f"x={shard}").values()] == ["real", "x", "real"]
    reals = rows(f"real={shard}", labelled=False, source="real", selection=MANIFOLD_REALS)
    assert len(reals) == 2
    with pytest.raises(ManifptError, match="named real, and its column label"):
        rows(f"real={shard}")
    two = parquet(tmp_path / "b.parquet", {"style": [0, 1, 0], "model": [1, 1, 0]},
                  style=["oil", "ink"], model=["real", "sd"])  # fmt: skip
    with pytest.raises(ManifptError, match="class labels in style, model; name one by --source-c"):
        rows(two)
    chosen = rows(two, columns=[("source", "model")])
    assert [source for source, _ in chosen.values()] == ["sd", "sd", "real"]


def test_shards_that_name_their_split():
    names = ["train-00000-of-00002.parquet", "d/val-00001-of-00002-9ab.parquet", "x-00001.parquet"]
    assert [split_of_shard(f"/a/{name}") for name in names] == ["train", "validation", None]


def test_community_forensics(tmp_path):
    facts = {"model_name": ["sd", "coco", "gan"], "real_source": ["coco", None, None],
             "label": [1, 0, 1], "split": ["train"] * 3}  # fmt: skip
    path = parquet(tmp_path / "cf.parquet", facts)
    assert list(rows(path).values()) == [("sd", "train"), ("real", "train"), ("gan", "train")]
    reals = rows(path, labelled=False, source="real", selection=MANIFOLD_REALS)
    assert list(reals.values()) == [("real", None)]
    other = parquet(tmp_path / "m.parquet", {"model_name": ["sd", "Real", None]})
    assert [source for source, _ in rows(other).values()] == ["sd", "real", None]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "tar"])
def test_columns_that_the_user_names(tmp_path, kind):
    facts = {"who": ["sd", "Real", "gan"], "fold": ["val", "training", "other"]}
    expected = [("sd", "validation"), ("real", "train"), ("gan", None)]
    path = tmp_path / f"t.{kind}"
    names = ["1.png", "2.png", "3.png"]
    lines = [dict(zip(("url", *facts), line, strict=True)) for line in
             zip(names, *facts.values(), strict=True)]  # fmt: skip
    if kind == "parquet":
        parquet(path, facts)
    elif kind == "csv":
        path.write_text("\n".join([",".join(lines[0])] + [",".join(x.values()) for x in lines]))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, lines)))
    else:
        members = [(f"{n}.png", png("real", n)) for n in range(3)]
        sidecars = [(f"{n}.json", json.dumps(line).encode()) for n, line in enumerate(lines)]
        write_tar(path, sorted(members + sidecars))
    columns = [("source", "who"), ("split", "fold")]
    assert list(rows(str(path), columns=columns).values()) == expected
    named = rows(f"x={path}", columns=columns).values()
    assert [source for source, _ in named] == ["x", "real", "x"]
    if kind in {"parquet", "csv"}:
        with pytest.raises(ManifptError, match=r"--source-column gone: .* has only"):
            rows(str(path), columns=[("source", "gone")])
        with pytest.raises(ManifptError, match=r"--source-column who: .* is named real, too"):
            rows(f"real={path}", columns=columns)


def test_columns_need_files_that_have_some(tmp_path):
    root = tree(tmp_path / "in", "a/1.png", "b/2.png")
    with pytest.raises(ManifptError, match="--source-column: no file of --input has columns"):
        rows(root, columns=[("source", "who")])


def test_jobs_take_layouts_and_columns_and_can_be_verified(tmp_path, ray_session):
    from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
    from manifpt.artifacts.verification import verify
    from manifpt.manifold.build import build_manifold

    root, model = tmp_path / "adm", Reading(source_column="model")
    for path, kind in (("train/nature", "real"), ("train/ai", "stripes"), ("val/ai", "stripes")):
        write_folder(root / path, kind, range(3))
    write_folder(root / "val" / "nature", "real", range(3, 6))
    images = [png("real", n) for n in range(20, 40)]
    columns = {"image": images, "style": [0] * 20, "model": [0] * 18 + [1] * 2}
    about = features(style=["oil", "ink"], model=["real", "sd"])
    table = pa.table(columns).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "two.parquet")
    reals, out = [f"real={tmp_path}/two.parquet"], [f"{tmp_path}/{n}" for n in ("m", "a")]
    manifold = build_manifold(reals, out[0], labels=model)
    assert manifold["reals"] == 18
    given = [str(root), f"{tmp_path}/two.parquet"]
    artifacts = compute_artifacts(given, out[1], ArtifactRecipe(out[:1], labels=model))
    splits = artifacts["classes"]
    assert splits["validation"]["adm"] == 3
    assert splits["validation"]["real"] >= 3  # and rows of the table, which declares no split
    assert sum(classes.get("real", 0) for classes in splits.values()) == 6 + 18
    assert splits["train"]["adm"] == 3
    assert sum(classes.get("sd", 0) for classes in splits.values()) == 2
    assert artifacts["inputs"]["sources"] == ["adm", "real"]
    assert verify(out[0], out[1], 10)["mismatches"] == 0
