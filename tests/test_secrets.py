"""Canaries: what is secret is in nothing that a job writes, prints, records or raises."""

import base64
import json
import os
import re
import sqlite3
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import handmade
import pytest
import s3fs
from conftest import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifpt import storage
from manifpt.errors import ManifptError, public
from manifpt.jobs import attribute
from manifpt.redaction import public_uri, public_values

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
        ("az://container/shard-??.tar", "az://container/shard-??.tar"),
        ("postgresql://u:canary@h/db and https://me:canary@x", "postgresql://h/db and https://x"),
        ("/data/a?b.png mail@example.org", "/data/a?b.png mail@example.org"),
    ],
)
def test_uris_lose_their_credentials(text, shown):
    found = public(text)
    assert "canary" not in found
    assert found.startswith(shown)
    assert str(ManifptError(text)) == found


# Each hides a secret, of any letters, in another place; {s} is as it is, {q} percent-encoded.
SHAPES = [
    "https://user:{q}@host/a.png",
    "HTTPS://USER:{q}@HOST/a.png",
    "https://{q}@host/a.png",
    "https://user:{s}%40host/a.png",
    "//user:{q}@host/a.png",
    "https://user:x{s}/x@host/a.png",
    "https://user:x{s}?x@host/a.png",
    "https://user:{q}@[2001:db8::1]:8443/a.png",
    "postgresql+psycopg2://me:{q}@host:5432/db",
    "mongodb://me:{q}@one:27017,two:27017/db?w=1",
    "redis://:{q}@host/0",
    "s3://key:{q}@bucket/a.png",
    "s3://AKIA:x{s}/x@bucket/a.png",
    "s3://bucket/a.png?token={s}",
    "s3://bucket/a.png%3Ftoken%3D{q}",
    "https://b.s3.amazonaws.com/a.png?X-Amz-Credential=AK%2F1&X-Amz-Signature={s}",
    "https://storage.googleapis.com/b/a.png?GoogleAccessId=x&Expires=1&Signature={q}",
    "https://x.blob.core.windows.net/c/a.png?sv=2022-11-02&sp=r&sig={q}",
    "az://container/a.png?sv=2022-11-02&sig={q}",
    "https://host/a.png?{s}",
    "https://host/a.png?a=b?c={s}",
    "https://host/a.png#access_token={s}",
    "https://host/a.png#{s}",
    "https://host/a;jsessionid={q}/b.png",
    "https://host/a.png;{q}",
    "https://host/a%3Fsig={q}",
    "https://host/a%253Fsig%253D{q}",
    "https://host/a%23{q}",
    "https:/host/a.png?sig={s}",
    "https:\\\\user:{q}@host\\a.png?sig={s}",
    "https:\\/\\/user:{q}@host\\/a.png?sig={s}",
    "https://host/a.png?sig=\n{s}",
    "https://host/a.png?sig=\t{s}",
    "https://ho\nst:{s}@host/a.png",
    "https://proxy/?u=https://host/a.png?sig={s}",
    "https://proxy/https://user:{q}@host/a.png",
    "https://proxy/https://{q}@host/a.png?sig={s}",
    "https://proxy/fetch/https%3A%2F%2Fuser%3A{q}%40host%2Fa.png%3Fsig%3D{q}",
    "https%3A%2F%2Fhost%2Fa.png%3Fsig%3D{q}",
    "sqlite:///path/ml.db?key={s}",
    "http://[::1?sig={s}",
    "url: /api/2.0/x?token={s}",
]
AROUND = ["{}", "a={}", "{}: no such file; check it", "('{}', 'b')", '{{"a": "{}", "b": 1}}',
          "uri: {}", "<{}>", "[x]({})", "s3://b/x-?.png and {}, then"]  # fmt: skip
SECRETS = st.text(string.ascii_letters + string.digits + "-_.~+/=&!$*(){}[]|^", min_size=1)
SECRETS = SECRETS.map("S3cr{}t".format) | st.binary(min_size=20).map(
    lambda data: "S3crt" + base64.b64encode(data).decode()
)


@pytest.mark.parametrize("shape", SHAPES)
@given(secret=SECRETS, around=st.sampled_from(AROUND))
@settings(max_examples=25, deadline=None)
def test_no_secret_survives_in_any_shape(shape, secret, around):
    quoted = quote(secret, safe="")
    found = public(around.format(shape.format(s=secret, q=quoted)))
    assert "S3cr" not in found
    assert "S3cr" not in public_uri(shape.format(s=secret, q=quoted))
    start, _, end = around.partition("{}")
    assert found.startswith(start.replace("{{", "{"))
    assert public(found) == found
    assert end.endswith(" 1}}") == found.endswith(" 1}")


@given(secret=st.text(min_size=1).map("S3cret{}".format))
def test_one_uri_loses_a_secret_of_any_letters(secret):
    for shape in ("https://host/a.png?sig={}", "https://host/a b.png#x={}", "a.png?sig={}"):
        assert "S3cret" not in public_uri(shape.format(secret))


WITHOUT_URI = st.text(st.characters(exclude_characters="/\\%:", exclude_categories=["Cs"]))


@given(WITHOUT_URI, st.lists(WITHOUT_URI, max_size=4))
def test_texts_without_uris_stay_as_they_are(text, parts):
    for whole in (text, f"C:\\{text}", "/".join([text, *parts]), f"/{'/'.join(parts)}",
                  f"s3://bucket/{text.replace('=', '')}"):  # fmt: skip
        if "//" not in whole.removeprefix("s3://"):
            assert public(whole) == whole


@pytest.mark.parametrize(
    "text",
    [
        "is a?b=c in prose: what?x=1, and C:\\data\\a?b=c \\\\server\\share\\a#b=c",
        "/data/img-??.png, s3://bucket/{a,b}/year=2020/img-?.png and s3://b/x-?/year=2020/*.png",
        "s3://bucket/x.tar#a/b.png: truncated; file:///data/t.csv#12",
        "http://127.0.0.1:5000: no answer (http://host:80), see https://host/@me/a@2x.png.",
        "models:/name@champion, runs:/0a/attributor, me@example.org, git@github.com:a/b.git",
        "https://web.archive.org/web/2020/https://host/a%20b.png",
        "first https://host/a.png\nsecond http://host:80\nthird",
    ],
)
def test_what_holds_no_credentials_stays_as_it_is(text):
    assert public(text) == text


def test_odd_texts_take_no_time_and_raise_nothing():
    for piece in ("%25", "%3F", "a://", "https://a/", "?", "'https://", "]", ";", "\\/", "@:"):
        started = time.monotonic()
        public(piece * 20_000)
        public("https://host/" + piece * 20_000)
        assert time.monotonic() - started < 2
    assert public("https://host/\ud800?a=b") == "https://host/\ud800"


def test_values_of_json_lose_theirs_wherever_they_are():
    secret = 'https://host/a?sig=S3cr"et'
    given = {"a": [secret, 1, None], secret: ({"b": secret},)}
    shown = {"a": ["https://host/a", 1, None], "https://host/a": ({"b": "https://host/a"},)}
    assert public_values(given) == shown


def test_the_promises_of_security_name_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text()


def written(*places: Path | str) -> list[tuple[str, bytes]]:
    """Return all files below local folders and S3 prefixes, hidden ones too."""
    found = []
    for place in map(str, places):
        if storage.is_remote(place):
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
        given = ["--config", str(config), "--output", output, *flags]
        command = ["-m", "manifpt", "attribute", *given]
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
