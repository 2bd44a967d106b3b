"""hf:// reads data sets through huggingface_hub, from a hub on loopback."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png, write_folder
from hub_server import DATASET, hub_server

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, plan, read_unit

pytest.importorskip("huggingface_hub")
ROOT = f"hf://datasets/{DATASET}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set on a hub: Parquet with class labels, and folders of sources."""
    write_folder(tmp_path / "sets" / "gan" / "0_real", "real", range(3))
    write_folder(tmp_path / "sets" / "gan" / "1_fake", "stripes", range(3))
    (tmp_path / "data").mkdir()
    images = [{"bytes": png("real", n), "path": None} for n in range(2)]
    label = {"label": {"names": ["real", "sd"], "_type": "ClassLabel"}}
    about = {b"huggingface": json.dumps({"info": {"features": label}}).encode()}
    table = pa.table({"image": images, "label": [1, 0]}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    with hub_server(tmp_path) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield tmp_path


def rows(uri):
    units = plan([uri], labelled=True)
    tables = [t for unit in units for t in read_unit(unit, DecodeRule(16))]
    return [row for table in tables for row in table.to_pylist()]


def test_a_data_set_is_read_as_the_same_files_here(hub):
    same = ("id", "source", "split", "error", "sha256")
    for inside in ("sets/gan", "data", "data/train-00000-of-00001.parquet"):
        there, here = rows(f"{ROOT}/{inside}"), rows(f"{hub}/{inside}")
        assert [[row[c] for c in same] for row in there] == [[row[c] for c in same] for row in here]
        assert [row["error"] for row in there] == [None] * len(there)
    assert [row["source"] for row in there] == ["sd", "real"]
    (at_revision,) = plan([f"{ROOT}@main/data"], labelled=True)
    assert at_revision.split == "train"
    pattern = plan([f"{ROOT}/sets/gan/1_fake/*.png"])
    assert [unit.ids for unit in pattern] == [("0000.png", "0001.png", "0002.png")]


def test_what_is_missing_out_of_reach_or_written_is_one_line(hub, monkeypatch):
    for uri, said in [
        (f"{ROOT}/gone", "no such file or folder|holds no files"),
        ("hf://datasets/owner/other/x", "no such"),
    ]:
        with pytest.raises(ManifptError, match=said) as error:
            plan([uri])
        assert "\n" not in str(error.value)
    with pytest.raises(ManifptError, match="only read; give another --output"):
        storage.create(f"{ROOT}/x", b"1")
