"""Vectors leave as arrays and tables that name each row: the same numbers, in the same order."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from conftest import draw, labelled

import manifpt
from manifpt import ManifptError
from manifpt.artifacts import export as exporting
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.artifacts.export import export
from manifpt.engine import pools
from manifpt.jobs import export as job
from manifpt.manifold.projector import projection_of
from manifpt.storage import files

ROW = 4 * 768  # bytes of a vector: 16 x 16 x 3 float32


@pytest.fixture(scope="module")
def manifold(corpus, tmp_path_factory) -> str:
    uri = f"{tmp_path_factory.mktemp('reals')}/m"
    manifpt.Manifold.fit(f"{corpus}/manifold", uri=uri, shards=3)
    return uri


@pytest.fixture(scope="module")
def embeddings(corpus, manifold, tmp_path_factory) -> str:
    """Embeddings of 180 images in files of at most 20 rows."""
    uri = f"{tmp_path_factory.mktemp('embeddings')}/a"
    recipe = ArtifactRecipe([manifold], projection=projection_of("none", None, 0.1), chunk=20)
    compute_artifacts(labelled(corpus), uri, recipe, demand=pools.HERE)
    return uri


def here(uri: str, output: str, **options) -> dict:
    return export(uri, str(output), demand=pools.HERE, **options)


def read(folder: Path) -> tuple[list[np.ndarray], list[pd.DataFrame]]:
    """Read a folder as autofaiss and clip-retrieval do: files in the order of their names."""
    arrays = [np.load(path) for path in sorted(folder.glob("img_emb/*.npy"))]
    tables = [pd.read_parquet(path) for path in sorted(folder.glob("metadata/*.parquet"))]
    return arrays, tables


def content(folder: Path) -> dict[str, bytes]:
    found = [*folder.glob("img_emb/*"), *folder.glob("metadata/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def pixels(row: pd.Series, kind: str) -> np.ndarray:
    image = draw(kind, int(Path(row["image_path"]).stem))
    return (image.transpose(2, 0, 1).ravel() / 255).astype(np.float32)


def test_vectors_of_a_manifold_are_its_reals_row_for_row(manifold, tmp_path):
    summary = here(manifold, tmp_path / "x", pair_bytes=7 * ROW)
    arrays, tables = read(tmp_path / "x")
    assert [len(array) for array in arrays] == [len(table) for table in tables]
    assert max(map(len, arrays)) == 7
    assert all(array.shape[1] == 768 and array.dtype == np.float32 for array in arrays)
    rows = pd.concat(tables)
    assert sorted(rows["id"]) == [f"{number:04d}.png" for number in range(60)]
    assert list(rows.columns) == ["image_path", "id"]
    expected = np.stack([pixels(row, "real") for _, row in rows.iterrows()])
    np.testing.assert_array_equal(np.concatenate(arrays), expected)
    assert (summary["rows"], summary["dimension"], summary["of"]) == (60, 768, "manifold")
    names = sorted(path.name for path in (tmp_path / "x" / "img_emb").iterdir())
    digits = len(str(len(names)))
    assert names == [f"img_emb_{n:0{digits}}.npy" for n in range(len(names))]


def test_embeddings_keep_their_sources_splits_and_places(embeddings, tmp_path):
    here(embeddings, tmp_path / "x", pair_bytes=50 * ROW)
    arrays, tables = read(tmp_path / "x")
    assert 180 / 50 <= len(arrays) < 9  # files of one chunk are put together
    assert max(map(len, arrays)) <= 50
    assert [len(array) for array in arrays] == [len(table) for table in tables]
    rows = pd.concat(tables)
    assert list(rows.columns) == ["image_path", "id", "source", "split"]
    parts = [str(p) for s in ("train", "validation", "test") for p in Path(embeddings, s).iterdir()]
    source = ds.dataset(parts).to_table().to_pandas().set_index("id").loc[rows["id"]]
    assert source["uri"].tolist() == rows["image_path"].tolist()
    for name in ("source", "split"):
        assert source[name].tolist() == rows[name].tolist()
    np.testing.assert_array_equal(np.concatenate(arrays), np.stack(source["artifact"].tolist()))
    expected = [pixels(row, row["source"]) for _, row in rows.iterrows()]
    np.testing.assert_array_equal(np.concatenate(arrays), np.stack(expected))


def test_float16_rounds_and_nothing_else(manifold, tmp_path):
    here(manifold, tmp_path / "whole")
    here(manifold, tmp_path / "half", float16=True)
    (whole, _), (half, rows) = read(tmp_path / "whole"), read(tmp_path / "half")
    assert half[0].dtype == np.float16
    for a, b in zip(whole, half, strict=True):
        np.testing.assert_array_equal(a.astype(np.float16), b)
    assert sum(map(len, rows)) == 60
    with pytest.raises(ManifptError, match="other settings; choose another --output"):
        here(manifold, tmp_path / "half")
    here(manifold, tmp_path / "half", terms=job.Config(
        input=manifold, output="x", overwrite=True).terms)  # fmt: skip
    assert content(tmp_path / "half") == content(tmp_path / "whole")


def test_an_image_without_a_uri_is_named_by_its_id(tmp_path):
    import pyarrow as pa

    rows = pa.table({"id": ["a", "b", "c"], "uri": ["/a.png", None, ""], "source": ["x"] * 3})
    found = exporting.metadata_table(rows)
    assert found["image_path"].to_pylist() == ["/a.png", "b", "c"]
    assert found.column_names == ["image_path", "id", "source"]


def test_an_interrupted_export_goes_on_and_makes_the_same_files(embeddings, tmp_path, monkeypatch):
    size = {"pair_bytes": 40 * ROW}
    here(embeddings, tmp_path / "whole", **size)
    write, written = exporting.write_array, []

    def dies(output, path, array):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return write(output, path, array)

    monkeypatch.setattr(exporting, "write_array", dies)
    with pytest.raises(KeyboardInterrupt):
        here(embeddings, tmp_path / "x", **size)
    assert not (tmp_path / "x" / "manifest.json").exists()
    (tmp_path / "x" / written[1]).write_bytes(b"damaged")
    again = []
    monkeypatch.setattr(
        exporting, "write_array", lambda *call: again.append(call[1]) or write(*call)
    )
    here(embeddings, tmp_path / "x", **size)
    assert written[0] not in again
    assert written[1] in again
    assert written[2] not in again
    assert content(tmp_path / "x") == content(tmp_path / "whole")
    assert not (tmp_path / "x" / "_records").exists()
    again.clear()
    here(embeddings, tmp_path / "x", **size)
    assert again == []


def test_a_shard_larger_than_a_pair_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("manifpt.manifold.stored.READ_BYTES", 2**13)
    reals = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    manifpt.Manifold.fit(reals, uri=f"{tmp_path}/m", shards=1)
    pair = 10 * ROW
    source = exporting.vector_source(f"{tmp_path}/m", pair)
    writer = exporting.PairWriter(f"{tmp_path}/x", "", source.read, 2, float16=False)
    (shard,) = source.units
    tracemalloc.start()
    record = writer.write(0, 0, shard[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    arrays, _ = read(tmp_path / "x")
    assert [len(array) for array in arrays] == [10] * 30
    assert record["rows_in"] == 300
    assert peak < 8 * pair < 300 * ROW / 2


def test_s3_holds_the_same_files_as_a_local_folder(s3, manifold, embeddings, tmp_path):
    for name, uri in (("m", manifold), ("a", embeddings)):
        here(uri, tmp_path / name, pair_bytes=30 * ROW)
        remote = f"{s3}/export/{name}"
        here(uri, remote, pair_bytes=30 * ROW)
        local = content(tmp_path / name)
        assert {path: files.read_bytes(f"{remote}/{path}") for path in local} == local
        there = [uri for uri, _ in files.all_files(remote)]
        assert len(there) == len(local) + 1  # the manifest


def test_inputs_that_are_no_vectors_are_refused_with_one_line(corpus, manifold, tmp_path):
    made_of = [f"real={corpus}/labelled/real"]
    recipe = ArtifactRecipe([manifold], plain=["image"])
    two = compute_artifacts(made_of, f"{tmp_path}/two", recipe, demand=pools.HERE)
    assert set(two["members"]) == {"rgb", "image"}
    here(f"{tmp_path}/two/rgb", tmp_path / "x")
    cases = {
        f"{tmp_path}/two": "holds several spaces; give one of them, such as .*/two/rgb",
        f"{tmp_path}/x": "holds export; give a finished output of build_manifold",
        f"{corpus}/manifold": "holds nothing finished; give",
        f"{tmp_path}/none": "holds nothing finished; give",
    }
    for uri, words in cases.items():
        with pytest.raises(ManifptError, match=words) as caught:
            here(uri, tmp_path / "y")
        assert "\n" not in str(caught.value)
    with pytest.raises(ManifptError, match="choose a folder beside it"):
        here(manifold, f"{manifold}/inside")
    assert not (tmp_path / "y").exists()


def test_a_damaged_input_is_refused_and_nothing_is_published(embeddings, tmp_path):
    import shutil

    copy = shutil.copytree(embeddings, tmp_path / "a")
    first = next((copy / "train").iterdir())
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    with pytest.raises(ManifptError, match="differs from its manifest's hash; make the artifacts"):
        here(str(copy), tmp_path / "x")
    assert not (tmp_path / "x" / "manifest.json").exists()


def test_the_job_on_ray_writes_what_this_process_writes(ray_session, manifold, tmp_path, capsys):
    assert job.main([manifold, "--output", f"{tmp_path}/x"]) == 0
    summary = json.loads(capsys.readouterr().out)
    here(manifold, tmp_path / "here")
    assert content(tmp_path / "x") == content(tmp_path / "here")
    assert summary["rows"] == 60
    assert summary["files"] == 3
    assert job.main([f"{tmp_path}/nothing", "--output", f"{tmp_path}/y"]) == 2
    assert "holds nothing finished" in capsys.readouterr().err.splitlines()[-1]
