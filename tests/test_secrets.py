"""Canaries: what is secret is in nothing that a job writes, prints, records or raises."""

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import handmade
import pytest
import s3fs
from conftest import draw
from PIL import Image

from jobs import attribute
from manifpt import storage
from manifpt.errors import ManifptError, public

ROOT = Path(__file__).parents[1]
CANARIES = [b"canary-secret-8412", b"canary-pass-77", b"canary-signature-31", b"canary-token-95"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:canary@host/a.png", "https://host/a.png"),
        ("x=https://h/a?X-Amz-Signature=canary&b=1: not found", "x=https://h/a"),
        ("'https://h/a?sig=canary', then more", "'https://h/a', then more"),
        ("s3://key:canary@bucket/a", "s3://bucket/a"),
        ("s3://bucket/a?token=canary", "s3://bucket/a"),
        ("s3://bucket/shard-??.tar", "s3://bucket/shard-??.tar"),
        ("postgresql://u:canary@h/db and https://me:canary@x", "postgresql://h/db and https://x"),
        ("/data/a?b.png mail@example.org", "/data/a?b.png mail@example.org"),
    ],
)
def test_uris_lose_their_credentials(text, shown):
    found = public(text)
    assert "canary" not in found
    assert found.startswith(shown)
    assert str(ManifptError(text)) == found


def written(*places: Path | str) -> list[tuple[str, bytes]]:
    """Return all files below local folders and S3 prefixes, hidden ones too."""
    found = []
    for place in map(str, places):
        if storage.is_s3(place):
            fs = s3fs.S3FileSystem(use_listings_cache=False)
            names = fs.find(place.removeprefix("s3://"))
            found += [(name, fs.cat_file(name)) for name in names]
        else:
            files = [path for path in Path(place).rglob("*") if path.is_file()]
            found += [(str(path), path.read_bytes()) for path in files]
    return found


def leaks(files: list[tuple[str, bytes]]) -> list[str]:
    return [name for name, data in files if any(canary in data for canary in CANARIES)]


@pytest.fixture
def sample(s3, tmp_path):
    """An attributor, some images on S3, and the environment and folders of a job of its own."""
    model = handmade.attributor(tmp_path / "model")
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    for n in range(4):
        Image.fromarray(draw("real", n)).save(tmp_path / f"{n}.png")
        fs.put(str(tmp_path / f"{n}.png"), f"manifpt/secrets/images/{n}.png")
    fs.pipe_file("manifpt/secrets/images/broken.png", b"no image")
    ray = Path(tempfile.mkdtemp(prefix="r-"))
    env = os.environ | {
        "RAY_TMPDIR": str(ray),
        "AWS_SESSION_TOKEN": "",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/ml/mlflow.db",
        "MLFLOW_TRACKING_PASSWORD": "canary-pass-77",
    }
    (tmp_path / "ml").mkdir()
    return model, env, tmp_path, ray


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_that_a_job_leaves_holds_a_secret(s3, sample):
    model, env, folder, ray = sample
    config = folder / "job.yaml"
    config.write_text(f"input: [{s3}/secrets/images]\nmodel: {model}\n")

    def run(output: str, *flags: str, **more: str) -> subprocess.CompletedProcess:
        command = ["-m", "jobs.attribute", "--config", str(config), "--output", output, *flags]
        return subprocess.run(
            [sys.executable, *command],
            capture_output=True, text=True, cwd=folder / "ml", timeout=200,
            env=env | {"PYTHONPATH": str(ROOT)} | more,
        )  # fmt: skip

    good = run(f"{s3}/secrets/good", "--json", str(folder / "ml" / "summary.json"))
    assert good.returncode == 0, good.stderr[-2000:]
    signed = f"{s3}/secrets/none?X-Amz-Signature=canary-signature-31"
    failed = run(f"{s3}/secrets/failed", "--input", f"a={signed}", f"{s3}/secrets/images")
    assert failed.returncode == 2
    denied = run(f"{s3}/secrets/denied", AWS_SECRET_ACCESS_KEY="canary-token-95")
    assert denied.returncode == 2
    assert "AWS_SECRET_ACCESS_KEY" in denied.stderr

    said = [(n, (d.stdout + d.stderr).encode()) for n, d in enumerate((good, failed, denied))]
    files = written(folder / "ml", ray, f"{s3}/secrets")
    assert len(files) > 20
    assert any("session_" in name and name.endswith(".log") for name, _ in files)
    assert leaks([(str(name), data) for name, data in said] + files) == []
    # What is looked through is what there is: params and artifacts of three runs.
    with sqlite3.connect(folder / "ml" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (3,)
        values = database.execute("select value from params where key = 'input'").fetchall()
    assert any("secrets/none" in value for (value,) in values)


def test_a_uri_with_a_password_is_refused_without_it(ray_session, tmp_path, capsys):
    model = handmade.attributor(tmp_path / "model")
    uri = "ftp://me:canary-pass-77@host/images"
    flags = ["--input", uri, "--model", model, "--output", f"{tmp_path}/out"]
    assert attribute.main(flags) == 2
    error = capsys.readouterr().err
    assert "ftp" in error
    assert "canary" not in error


def test_a_summary_in_mlflow_has_no_credentials(tmp_path):
    from mlflow import MlflowClient

    from manifpt import tracking

    secret = "https://me:canary-pass-77@host/a?X-Amz-Signature=canary-signature-31"
    with tracking.run("secret", {"input": (secret,)}) as run:
        run.document("summary.json", {"inputs": {"given": [secret]}})
        run.inputs({"given": ["https://host/a"], "content_key": "0" * 64}, "attribute")
    client = MlflowClient(run.uri)
    assert "canary" not in json.dumps(client.get_run(run.id).data.to_dictionary())
    path = client.download_artifacts(run.id, "summary.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == {"inputs": {"given": ["https://host/a"]}}
