"""The chain from S3 to S3 on a real server, against the same chain on local folders."""

import shutil

import numpy as np
import pytest
import s3fs

from manifpt import storage
from manifpt.jobs import attribute, build_manifold, compute_artifacts, evaluate, train_attribution

NETWORK = ["--backbone", "resnet18", "--stem", "standard", "--epochs", "1", "--batch-size", "32"]


def run_chain(inputs: str, out: str) -> None:
    labelled = [f"{k}={inputs}/labelled/{k}" for k in ("real", "stripes", "blocks")]
    reals = ["--input", f"real={inputs}/manifold", "--output", f"{out}/m"]
    assert build_manifold.main(reals) == 0
    flags = ["--input", *labelled, "--manifold", f"{out}/m", "--output", f"{out}/a"]
    assert compute_artifacts.main(flags) == 0
    assert train_attribution.main(["--input", f"{out}/a", "--output", f"{out}/t", *NETWORK]) == 0
    assert (
        evaluate.main(["--input", f"{out}/a", "--model", f"{out}/t", "--output", f"{out}/e"]) == 0
    )
    flags = ["--input", f"{inputs}/labelled", "--model", f"{out}/t", "--output", f"{out}/v"]
    assert attribute.main(flags) == 0


def same(one: str, other: str, *names: str) -> None:
    """Assert that the tables of two outputs are equal, but for where their images lie."""
    for name in names:
        first, second = table(one, name), table(other, name)
        assert len(first)
        assert first["id"].tolist() == second["id"].tolist()
        assert first["neighbor_id"].tolist() == second["neighbor_id"].tolist()
        assert first["distance"].tolist() == second["distance"].tolist()
        for column in {"prediction", "probability"} & set(first.columns):
            assert first[column].tolist() == second[column].tolist()
        if "artifact" in first:
            assert np.array_equal(np.stack(first["artifact"]), np.stack(second["artifact"]))


def table(folder: str, name: str):
    files = [uri for uri, _ in storage.files_under(f"{folder}/{name}") if uri.endswith(".parquet")]
    frames = [storage.read_parquet(uri).to_pandas() for uri in files]
    import pandas as pd

    return pd.concat(frames).drop(columns="uri", errors="ignore").reset_index(drop=True)


@pytest.fixture(scope="module")
def remote(s3, corpus) -> str:
    """The corpus on S3."""
    s3fs.S3FileSystem(use_listings_cache=False).put(str(corpus), "manifpt/corpus", recursive=True)
    return f"{s3}/corpus"


def test_artifacts_and_attributions_on_s3_equal_local_ones(s3, remote, chain, corpus, tmp_path):
    out = f"{s3}/out"
    reals = ["--input", f"real={remote}/manifold", "--shards", "3", "--output", f"{out}/m"]
    assert build_manifold.main(reals) == 0
    one, two = (storage.read_json(f"{place}/m/manifest.json") for place in (chain, out))
    assert one["key"] == two["key"]
    assert one["content_sha256"] == two["content_sha256"]
    labelled = [f"{k}={remote}/labelled/{k}" for k in ("real", "stripes", "blocks")]
    flags = ["--input", *labelled, "--manifold", f"{out}/m", "--output", f"{out}/a"]
    assert compute_artifacts.main(flags) == 0
    same(str(chain), out, "a/train", "a/test")
    s3fs.S3FileSystem(use_listings_cache=False).put(f"{chain}/t", "manifpt/out/t", recursive=True)
    here = shutil.copytree(chain / "t", tmp_path / "t")
    for images, model, manifold, where in (
        (f"{corpus}/labelled", str(here), f"{chain}/m", str(tmp_path)),
        (f"{remote}/labelled", f"{out}/t", f"{out}/m", out),
    ):
        flags = ["--input", images, "--model", model, "--manifold", manifold]
        assert attribute.main([*flags, "--output", f"{where}/v"]) == 0
    same(str(tmp_path), out, "v/attributions")


@pytest.mark.slow
def test_the_whole_chain_on_s3_equals_the_local_one(s3, remote, ray_session, corpus, tmp_path):
    local, out = str(tmp_path), f"{s3}/whole"
    run_chain(str(corpus), local)
    run_chain(remote, out)
    for name in ("m", "a", "t"):
        one, two = (storage.read_json(f"{p}/{name}/manifest.json") for p in (local, out))
        assert one["key"] == two["key"]
    same(local, out, "a/train", "a/test", "e/scores", "v/attributions")
    leaked = [u for u, _ in storage.files_under(out) if b"canary-secret" in storage.read_bytes(u)]
    assert leaked == []


def test_storage_errors_name_the_remedy(s3, ray_session, corpus, capsys, monkeypatch):
    reals = ["--input", f"real={corpus}/manifold"]
    missing = ["--input", "real=s3://no-such-bucket/reals", "--output", f"{s3}/missing"]
    assert build_manifold.main(missing) == 2
    assert "no-such-bucket" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        s3fs.S3FileSystem.clear_instance_cache()
        assert build_manifold.main([*reals, "--output", f"{s3}/denied"]) == 2
    error = capsys.readouterr().err
    assert "AWS_SECRET_ACCESS_KEY" in error
    assert "canary" not in error
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("MANIFPT_S3_SECONDS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        assert build_manifold.main([*reals, "--output", f"{s3}/unreachable"]) == 2
    assert "AWS_ENDPOINT_URL" in capsys.readouterr().err
    s3fs.S3FileSystem.clear_instance_cache()
