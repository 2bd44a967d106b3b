"""A certificate is worth what it catches."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import draw
from PIL import Image

from manifpt import storage
from manifpt.artifacts.brute_force import WHITENED_TOLERANCE, ArtifactRow, Checked
from manifpt.jobs import build_manifold, compute_artifacts, verify
from manifpt.manifold import Metric
from manifpt.manifold.metric import Whitening

MADE = {
    "rgb": ("rgb", "nearest", "euclidean"),
    "freq": ("freq", "tangent", "euclidean"),
    "residual": ("residual", "tangent", "euclidean"),
    "white": ("rgb", "nearest", "whitened"),
}


def images(path: Path, kind: str, numbers: range) -> Path:
    path.mkdir(parents=True)
    for n in numbers:
        Image.fromarray(draw(kind, n)).save(path / f"{n:03d}.png")
    return path


@pytest.fixture(scope="module")
def made(ray_session, tmp_path_factory):
    out = tmp_path_factory.mktemp("verified")
    images(out / "reals", "real", range(60))
    images(out / "stripes", "stripes", range(20))
    images(out / "unseen", "real", range(50, 80))  # ten of them are in the manifold
    return out


def make(out: Path, name: str) -> None:
    """Build one of MADE, unless a test has done so."""
    space, projector, metric = MADE[name]
    flags = ["--input", f"real={out}/reals", "--space", space, "--shards", "3", "--metric", metric]
    assert build_manifold.main([*flags, "--output", f"{out}/m-{name}"]) == 0
    flags = ["--input", f"stripes={out}/stripes", f"real={out}/unseen"]
    flags += ["--manifold", f"{out}/m-{name}", "--projector", projector]
    assert compute_artifacts.main([*flags, "--output", f"{out}/a-{name}"]) == 0


@pytest.mark.parametrize(("farther", "first"), [(1e-8, "b"), (1e-3, "a")])
def test_a_named_neighbour_may_be_farther_by_rounding_alone(farther, first):
    whitening = Whitening(np.zeros(2), np.eye(2), np.array([0.25, 4.0]), 1.0)
    checked = Checked(
        [ArtifactRow("", "", "", "b", 1.0, np.zeros(2), "float")],
        np.zeros((1, 2), np.float32),
        1,
        Metric("whitened", whitening),
        WHITENED_TOLERANCE,
    )
    reals = np.array([[0.5, 0], [0, 2 * (1 + farther)]])  # of distance 1, whitened
    checked.meet(np.array(["a", "b"], dtype=object), np.array(["x", "y"]), reals)
    checked.settle()
    assert checked.id.tolist() == [[first]]
    assert checked.distance[0, 0] == pytest.approx(1, rel=1e-6)


def rewritten(folder: str, path: str, table: pa.Table) -> None:
    """Replace a part and make the manifest say so: what only a recomputation can find."""
    manifest = storage.read_json(f"{folder}/manifest.json")
    text = storage.json_bytes(manifest).decode()
    old = storage.sha256(f"{folder}/{path}")
    new = storage.write_bytes(f"{folder}/{path}", storage.parquet_bytes(table))
    storage.write_bytes(f"{folder}/manifest.json", text.replace(old, new["sha256"]).encode())


SLOW = {"freq", "white"}  # another projection and space, checked as rgb is
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MADE]


@pytest.mark.parametrize("name", NAMES)
def test_honest_artifacts_have_no_mismatch(made, name):
    make(made, name)
    assert verify.main([f"{made}/m-{name}", f"{made}/a-{name}", "--rows", "40"]) == 0
    certificate = storage.read_json(f"{made}/a-{name}/certificate.json")
    assert certificate["rows_checked"] == 40
    assert certificate["reals_checked"] > 10
    assert certificate["mismatches"] == 0
    # Whitened distances, of about 30, are those of float32 points.
    assert certificate["largest_distance_error"] < (1e-5 if name == "white" else 1e-9)


def shard(folder: Path) -> None:
    path = next(folder.glob("m/shard-*/vectors.npy"))
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(bytes(data))


def artifact(folder: Path) -> None:
    path = str(next(folder.glob("a/train/*.parquet")).relative_to(folder / "a"))
    table = storage.read_parquet(f"{folder}/a/{path}")
    values = table["artifact"].combine_chunks()
    flat = np.array(values.flatten())
    flat[7] += 0.01
    changed = pa.FixedSizeListArray.from_arrays(pa.array(flat), values.type.list_size)
    rewritten(f"{folder}/a", path, table.set_column(table.num_columns - 1, "artifact", changed))


def neighbour(folder: Path) -> None:
    for path in folder.glob("a/[tv]*/*.parquet"):
        name = str(path.relative_to(folder / "a"))
        table = storage.read_parquet(f"{folder}/a/{name}")
        index = table.column_names.index("neighbor_id")
        ids = table["neighbor_id"].to_pylist()
        rewritten(f"{folder}/a", name, table.set_column(index, "neighbor_id", pa.array(ids[::-1])))


def real_ids(folder: Path) -> None:
    for path in folder.glob("m/shard-*/rows.parquet"):
        name = str(path.relative_to(folder / "m"))
        table = storage.read_parquet(f"{folder}/m/{name}")
        ids = pa.array(table["id"].to_pylist()[::-1])
        rewritten(f"{folder}/m", name, table.set_column(0, "id", ids))


def pixel(folder: Path) -> None:
    path = folder / "stripes" / "003.png"
    image = np.array(Image.open(path))
    image[3, 3, 0] ^= 1
    Image.fromarray(image).save(path)


def real_pixel(folder: Path) -> None:
    for path in (folder / "reals").glob("*.png"):
        image = np.array(Image.open(path))
        image[0, 0, 0] ^= 1
        Image.fromarray(image).save(path)


def covariance(folder: Path) -> None:
    path = folder / "m" / "whitening.npy"
    lines = np.load(path)
    lines[:, 0] *= 1.001
    old = storage.sha256(str(path))
    np.save(path, lines)
    manifest = folder / "m" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, storage.sha256(str(path))))


@pytest.mark.parametrize(
    ("which", "tamper", "words"),
    [
        ("rgb", shard, "differs from its manifest"),
        ("rgb", artifact, "artifact is off"),
        ("rgb", neighbour, "neighbor_id is"),
        ("rgb", real_ids, "neighbor_id is"),
        ("white", covariance, "distance is"),
        ("white", neighbour, "neighbor_id is"),
        ("rgb", pixel, "its pixels are others"),
        ("rgb", real_pixel, "not that of its image"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_changed_is_caught(made, tmp_path, which, tamper, words):
    make(made, which)
    folders = ((f"m-{which}", "m"), (f"a-{which}", "a"), ("stripes", "stripes"), ("reals", "reals"))
    for name, to in folders:
        shutil.copytree(made / name, tmp_path / to)
    shutil.copytree(made / "unseen", tmp_path / "unseen")
    for name in ("m", "a"):  # the copies' images are the copies' own
        text = (tmp_path / name / "manifest.json").read_text()
        (tmp_path / name / "manifest.json").write_text(text.replace(str(made), str(tmp_path)))
    honest = [f"{tmp_path}/m", f"{tmp_path}/a", "--rows", "500"]
    assert verify.main(honest) == 0
    tamper(tmp_path)
    assert verify.main(honest) == 1
    found = storage.read_json(f"{tmp_path}/a/certificate.json")
    assert words in str(found["what"])
