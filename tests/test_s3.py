"""The whole chain from S3 to S3 on a real server, against the same chain on local folders."""

import numpy as np
import s3fs

from jobs import attribute, build_manifold, compute_artifacts, evaluate, train_attribution
from manifpt import storage

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


def table(folder: str, name: str):
    files = [uri for uri, _ in storage.files_under(f"{folder}/{name}") if uri.endswith(".parquet")]
    frames = [storage.read_parquet(uri).to_pandas() for uri in files]
    import pandas as pd

    return pd.concat(frames).drop(columns="uri", errors="ignore").reset_index(drop=True)


def test_s3_equals_local(s3, ray_session, corpus, tmp_path):
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.put(str(corpus), "manifpt/corpus", recursive=True)
    run_chain(str(corpus), str(tmp_path))
    run_chain(f"{s3}/corpus", f"{s3}/out")
    local, remote = str(tmp_path), f"{s3}/out"
    for name in ("m", "a", "t"):
        one, two = (storage.read_json(f"{p}/{name}/manifest.json") for p in (local, remote))
        assert one["key"] == two["key"]
    assert (
        storage.read_json(f"{local}/m/manifest.json")["content_sha256"]
        == storage.read_json(f"{remote}/m/manifest.json")["content_sha256"]
    )
    for name in ("a/train", "a/test", "e/scores", "v/attributions"):
        one, two = table(local, name), table(remote, name)
        assert one["id"].tolist() == two["id"].tolist()
        assert one["neighbor_id"].tolist() == two["neighbor_id"].tolist()
        assert one["distance"].tolist() == two["distance"].tolist()
        for column in {"prediction", "probability"} & set(one.columns):
            assert one[column].tolist() == two[column].tolist()
        if "artifact" in one:
            assert np.array_equal(np.stack(one["artifact"]), np.stack(two["artifact"]))
    leaked = [
        u for u, _ in storage.files_under(remote) if b"canary-secret" in storage.read_bytes(u)
    ]
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
        s3fs.S3FileSystem.clear_instance_cache()
        assert build_manifold.main([*reals, "--output", f"{s3}/unreachable"]) == 2
    assert "AWS_ENDPOINT_URL" in capsys.readouterr().err
    s3fs.S3FileSystem.clear_instance_cache()
