"""From an attributor's folder to a registered model: served over HTTP, used by name, refused."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from conftest import png, write_folder
from handmade import attributor, untrained

from manifpt.images import sandbox
from manifpt.jobs import (
    attribute,
    build_manifold,
    compute_artifacts,
    evaluate,
    register,
    train_attribution,
)
from manifpt.registry.model_card import Facts, description, public
from manifpt.registry.requirements import pinned
from manifpt.throughput.seaweed import free_ports

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NETWORK = ["--backbone", "resnet18", "--stem", "half", "--epochs", "2", "--batch-size", "16",
           "--num-workers", "1"]  # fmt: skip
KINDS = ("real", "stripes", "blocks")


@pytest.fixture(scope="module")
def trained(ray_session, corpus, tmp_path_factory) -> Path:
    """Two manifolds, an attributor on both, its evaluation, and what jobs.attribute says by it.

    Its weights are random, since nothing here asks how good it is: training takes a minute.
    """
    out = tmp_path_factory.mktemp("register")
    images = [f"{kind}={corpus}/labelled/{kind}" for kind in KINDS]
    reals = ["--input", f"real={corpus}/manifold", "--space", "rgb+freq", "--output", f"{out}/m"]
    assert build_manifold.main(reals) == 0
    flags = ["--input", *images, "--manifold", f"{out}/m", "--output", f"{out}/a"]
    assert compute_artifacts.main(flags) == 0
    untrained(f"{out}/a", f"{out}/t")
    flags = ["--input", f"{out}/a", "--model", f"{out}/t", "--output", f"{out}/e"]
    assert evaluate.main(flags) == 0
    mixed = write_folder(out / "mixed", "stripes", range(2000, 2006))
    write_folder(mixed / "reals", "real", range(2000, 2006))
    (mixed / "broken.png").write_bytes(b"no image")
    flags = ["--input", str(mixed), "--model", f"{out}/t", "--output", f"{out}/v"]
    assert attribute.main(flags) == 0
    return out


def registered(trained: Path, name: str, *flags: str) -> dict:
    flags = ["--model", f"{trained}/t", "--name", name, *flags, "--json", f"{trained}/s.json"]
    assert register.main(flags) == 0
    return json.loads((trained / "s.json").read_text())


def verdicts(folder: Path) -> pd.DataFrame:
    return ds.dataset(folder / "attributions").to_table().to_pandas().set_index("id").sort_index()


def check_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    for name in ("prediction", "decision", "neighbor_id"):
        assert found[name].tolist() == expected[name].tolist()
    for name in ("probability", "distance", "percentile"):
        np.testing.assert_allclose(
            found[name].astype(float), expected[name].astype(float), atol=1e-5
        )


def images_of(table: pd.DataFrame) -> list[bytes]:
    return [Path(uri).read_bytes() for uri in table["uri"]]


def test_credentials_never_reach_a_card():
    assert public("real=s3://key:secret@bucket/x") == "real=s3://bucket/x"
    assert public("https://host/x?X-Amz-Signature=abc") == "https://host/x"


def test_the_card_says_how_far_unknown_generators_are_found():
    confusion = [[8, 2], [1, 9]]
    both = {"expected_calibration_error": 0.1, "brier_score": 0.4}
    found = {"auroc": 0.71, "auroc_low": 0.6, "auroc_high": 0.8, "fpr_at_95_tpr": 0.8, "oscr": 0.6}
    found |= {"unknown_found": 0.25, "false_rejection": 0.04, "unknown_images": 40}
    found |= {"sources": {"vae": {}, "flow": {}}, "rule": {"false_rejection": 0.05}}
    metrics = {"confusion": confusion, "classes": ["gan", "real"], "open_set": found}
    metrics["calibration"] = {"before": both, "after": both | {"brier_score": 0.3}}
    metrics["false_rejection_by_class"] = {"gan": 0.07, "real": 0.01}
    manifest = {"classes": ["gan", "real"], "open_set": {"scores": []}}
    text = description(Facts(manifest, [], metrics, False, "0"))
    for words in ("(vae, flow; 40 images): AUROC 0.710 (0.600 to 0.800)", "called unknown: 0.250",
                  "0.040 of images of known sources", "Brier score 0.300 (before 0.400)",
                  "at most a share of 0.05",
                  "those of gan are called unknown most often: 0.07"):  # fmt: skip
        assert words in text
    assert "Closed set" not in text
    metrics = {"confusion": confusion, "classes": ["gan", "real"]}  # as of before
    assert "Closed set" in description(Facts({"classes": ["gan", "real"]}, [], metrics, False, "0"))


@pytest.mark.slow
def test_a_registered_model_predicts_as_the_job_and_says_where_it_is_from(trained):
    summary = registered(trained, "same", "--evaluation", f"{trained}/e", "--manifold", "reference")
    model = mlflow.pyfunc.load_model("models:/same@champion")
    expected = verdicts(trained / "v")
    found = model.predict(pd.DataFrame({"image": [*images_of(expected), b"broken"]}))
    check_same(found[:-1], expected)
    last = found.iloc[-1].to_dict()
    assert (last["status"], last["error"]) == ("quarantined", "unknown_format")
    assert last["probability"] is None
    version = mlflow.MlflowClient().get_model_version_by_alias("same", "champion")
    assert summary["registered"] == f"models:/same/{version.version}"
    manifest = json.loads((trained / "t" / "manifest.json").read_text())
    hashes = [branch["manifold_sha256"] for branch in manifest["branches"]]
    assert version.tags["manifpt.attributor_key"] == manifest["key"]
    assert version.tags["manifpt.manifold_sha256"] == ",".join(hashes)
    assert version.tags["manifpt.manifold"] == "referenced"
    assert len(version.tags["manifpt.git_commit"]) >= 7
    again = registered(trained, "same")
    assert int(again["version"]) == int(version.version) + 1
    moved = mlflow.MlflowClient().get_model_version_by_alias("same", "champion")
    assert str(moved.version) == again["version"]


@pytest.mark.slow
def test_the_card_says_what_was_measured_and_what_was_not(trained, tmp_path, capsys):
    registered(trained, "card", "--evaluation", f"{trained}/e")
    uri = "models:/card@champion/artifacts/model_card.md"
    card = Path(mlflow.artifacts.download_artifacts(uri)).read_text()
    metrics = json.loads((trained / "e" / "metrics.json").read_text())
    for name in ("accuracy", "balanced_accuracy", "macro_f1"):
        low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
        line = f"| {name.replace('_', ' ')} | {metrics[name]:.3f} | {low:.3f} to {high:.3f} |"
        assert line in card
    manifest = json.loads((trained / "t" / "manifest.json").read_text())
    for branch in manifest["branches"]:
        assert branch["manifold_sha256"] in card
        assert branch["manifold"] in card
    for words in ("Closed set", "16 x 16 pixels", "not stated", "resnet18", '"eps"', *KINDS):
        assert words in card
    counts = manifest["rows"]["train"]["stripes"], manifest["rows"]["validation"]["stripes"]
    assert f"| stripes | {counts[0]} | {counts[1]} |" in card
    version = mlflow.MlflowClient().get_model_version_by_alias("card", "champion")
    assert f"{metrics['accuracy']:.3f}" in version.description
    registered(trained, "card", "--alias", "unmeasured")
    other = mlflow.MlflowClient().get_model_version_by_alias("card", "unmeasured")
    assert "No evaluation on unseen images" in other.description
    same = mlflow.MlflowClient().get_model_version_by_alias("card", "champion")
    assert same.version == version.version
    copy = shutil.copytree(trained / "e", tmp_path / "e")
    other = json.loads((copy / "manifest.json").read_text()) | {"attributor": "another"}
    (copy / "manifest.json").write_text(json.dumps(other))
    flags = ["--model", f"{trained}/t", "--name", "card", "--evaluation", str(copy)]
    assert register.main(flags) == 2
    assert "another attributor" in capsys.readouterr().err.splitlines()[-1]


def test_a_benchmarks_licence_is_on_the_card():
    from conftest import BENCHMARK

    from manifpt.registry.model_card import licence_of

    assert "MIT" in licence_of(f"gm={BENCHMARK}")
    assert licence_of("gm=/no/such/folder") == "not stated"


@pytest.mark.slow
def test_the_model_is_complete_without_folder_checkout_or_ray(trained, tmp_path):
    """Its manifolds are deleted; another process without this code loads it and starts no Ray."""
    own = shutil.copytree(trained / "m", tmp_path / "m")
    summary = registered(trained, "whole", "--moved", str(own), "--manifold", "include")
    assert summary["manifold"] == "included"
    shutil.rmtree(own)
    expected = verdicts(trained / "v")
    script = f"""
import json, sys
import mlflow, pandas as pd
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement
model = mlflow.pyfunc.load_model("models:/whole@champion")
images = [open(uri, "rb").read() for uri in {expected["uri"].tolist()!r}]
found = model.predict(pd.DataFrame({{"image": images}}))
import manifpt
by_module = packages_distributions()
names = {{name.split(".")[0] for name in sys.modules}}
# One distribution of a namespace such as google is enough.
loaded = [{{d.lower().replace("_", "-") for d in by_module.get(name, [])}} for name in names]
reached, left = set(), [p.split("==")[0] for p in {pinned()!r}]
while left:
    name = left.pop().lower().replace("_", "-")
    if name not in reached:
        reached.add(name)
        try:
            left += [Requirement(r).name for r in requires(name) or ()]
        except PackageNotFoundError:
            pass
print(json.dumps({{
    "found": found.to_dict("list"), "code": manifpt.__file__, "ray": "ray" in sys.modules,
    "strange": sorted(min(some) for some in loaded if some and not some & reached)}}))
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path,
                          capture_output=True, text=True, timeout=200, check=True)  # fmt: skip
    answer = json.loads(done.stdout.splitlines()[-1])
    check_same(pd.DataFrame(answer["found"]), expected)
    assert not answer["ray"]
    assert answer["code"].endswith("/code/manifpt/__init__.py")
    assert set(answer["strange"]) <= {"manifpt", "setuptools", "pip"}
    requirements = Path(mlflow.pyfunc.get_model_dependencies("models:/whole@champion")).read_text()
    assert all("==" in line for line in requirements.split())


@pytest.mark.slow
def test_a_manifold_that_is_gone_or_another_is_refused_with_the_remedy(trained, corpus, tmp_path):
    own = shutil.copytree(trained / "m", tmp_path / "m")
    registered(trained, "away", "--moved", str(own), "--manifold", "reference")
    mlflow.pyfunc.load_model("models:/away@champion")
    manifest = own / "rgb" / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"content_sha256": "0" * 64}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(Exception, match=r"is now 000000000000, and the model needs .*--moved"):
        mlflow.pyfunc.load_model("models:/away@champion")
    shutil.rmtree(own)
    with pytest.raises(Exception, match=r"is gone, and the model needs .*--manifold include"):
        mlflow.pyfunc.load_model("models:/away@champion")


@pytest.mark.slow
def test_jobs_take_a_registered_model(trained, corpus, tmp_path, capsys):
    registered(trained, "used", "--manifold", "include")
    flags = ["--input", f"{trained}/mixed", "--output", f"{tmp_path}/v"]
    assert attribute.main([*flags, "--model", "models:/used@champion"]) == 0
    check_same(verdicts(tmp_path / "v"), verdicts(trained / "v"))
    summary = json.loads((tmp_path / "v" / "summary.json").read_text())
    version = mlflow.MlflowClient().get_model_version_by_alias("used", "champion")
    assert summary["model"] == f"models:/used/{version.version}"
    assert summary["registered"]["version"] == str(version.version)
    assert summary["registered"]["run"] == version.run_id
    assert all(uri.startswith(f"{tmp_path}/v/model/") for uri in summary["manifolds"])
    flags = ["--input", f"{trained}/a", "--output", f"{tmp_path}/e"]
    assert evaluate.main([*flags, "--model", f"models:/used/{version.version}"]) == 0
    metrics = [json.loads((p / "e" / "metrics.json").read_text()) for p in (trained, tmp_path)]
    assert metrics[0] == metrics[1]
    flags = ["--input", f"{trained}/mixed", "--output", f"{tmp_path}/none"]
    assert attribute.main([*flags, "--model", "models:/used@nobody"]) == 2
    assert "manifpt register" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_run_and_an_image_attributor_can_be_named(trained, corpus, tmp_path):
    images = [f"{kind}={corpus}/labelled/{kind}" for kind in KINDS]
    flags = ["--input", *images, "--space", "image", "--output", f"{tmp_path}/t", *NETWORK]
    assert train_attribution.main([*flags, "--register", "plain"]) == 0
    version = mlflow.MlflowClient().get_model_version_by_alias("plain", "champion")
    assert version.tags["manifpt.manifold_sha256"] == "none"
    flags = ["--input", f"{trained}/mixed", "--output", f"{tmp_path}/v"]
    assert attribute.main([*flags, "--model", f"runs:/{version.run_id}/attributor"]) == 0
    expected = verdicts(tmp_path / "v")
    model = mlflow.pyfunc.load_model("models:/plain/1")
    found = model.predict(pd.DataFrame({"image": images_of(expected)}))
    assert found["prediction"].tolist() == expected["prediction"].tolist()
    assert found["neighbor_id"].tolist() == [None] * len(found)


@pytest.mark.slow
def test_a_manifold_larger_than_memory_is_read_in_blocks(trained, monkeypatch):
    from manifpt.manifold import placement
    from manifpt.registry import pyfunc as model

    context = SimpleNamespace(artifacts={"attributor": f"{trained}/t"})
    expected = verdicts(trained / "v")
    images = pd.DataFrame({"image": images_of(expected)})
    monkeypatch.setattr(placement, "SHARE", 0.0)
    monkeypatch.setattr(placement, "ALONE_BLOCK_BYTES", 20_000)
    scanning = model.AttributorModel()
    scanning.load_context(context)
    assert scanning.stage.projectors[0].searcher.rows
    check_same(scanning.predict(context, images), expected)


def test_an_image_that_ends_its_decoder_costs_its_row_in_any_thread(trained, monkeypatch):
    from manifpt.registry import pyfunc as model

    poisoned = Path(__file__).parents[1] / "poisoned_decoder.py"
    monkeypatch.setattr(sandbox, "COMMAND", (sys.executable, "-P", str(poisoned)))
    sandbox._close_idle()
    served = model.AttributorModel()
    served.load_context(SimpleNamespace(artifacts={"attributor": f"{trained}/t"}))
    expected = verdicts(trained / "v")
    good = images_of(expected)
    images = pd.DataFrame({"image": [*good, good[0] + b"segfault"]})
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: served.predict(None, images), range(4)):
            check_same(found[:-1], expected)
            assert found["error"].tolist()[-1] == "crashed"
    sandbox._close_idle()


def test_a_loaded_model_has_its_decoder_ready_for_the_first_request(tmp_path, monkeypatch):
    from manifpt.registry import pyfunc as model

    sandbox._close_idle()
    served = model.AttributorModel()
    served.load_context(SimpleNamespace(artifacts={"attributor": attributor(tmp_path / "t")}))
    monkeypatch.setattr(sandbox, "COMMAND", ("false",))  # no other can start
    images = pd.DataFrame({"image": [png("stripes", 1)]})
    with ThreadPoolExecutor(1) as thread:  # as a server asks
        found = thread.submit(served.predict, None, images).result()
    assert found["status"].tolist() == ["ok"]
    sandbox._close_idle()


def post(url: str, body: dict) -> list[dict]:
    data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/invocations", data, kind)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read(), parse_constant=pytest.fail)["predictions"]


@pytest.fixture(scope="module")
def server(trained, tmp_path_factory):
    """The real `mlflow models serve`, as a process group of its own."""
    registered(trained, "served")
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("serve")
    command = [BIN / "mlflow", "models", "serve", "-m", "models:/served@champion",
               "--env-manager", "local", "--port", str(port), "--workers", "1"]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env["PATH"] = f"{BIN}:{env['PATH']}"
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True
        )
    try:
        for _ in range(240):
            time.sleep(0.5)
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                continue
        else:
            pytest.fail((folder / "log.txt").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_it_is_served_over_http(server, trained):
    url, group = server
    expected = verdicts(trained / "v")
    text = [base64.b64encode(data).decode() for data in [*images_of(expected), b"broken"]]
    bodies = [
        {"dataframe_split": {"columns": ["image"], "data": [[image] for image in text]}},
        {"dataframe_records": [{"image": image} for image in text]},
        {"inputs": {"image": text}},
    ]
    for body in bodies:
        found = pd.DataFrame(post(url, body))
        check_same(found[:-1], expected)
        assert found["status"].tolist() == ["ok"] * len(expected) + ["quarantined"]
        assert found["error"].tolist()[-1] == "unknown_format"
    members = [p for p in Path("/proc").glob("[0-9]*") if in_group(p, group)]
    assert len(members) > 1
    assert not any("raylet" in (p / "maps").read_text() for p in members)


def in_group(process: Path, group: int) -> bool:
    try:
        return os.getpgid(int(process.name)) == group
    except ProcessLookupError:
        return False


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name", "a/b"], "--name"),
        (["--name", "a", "--alias", "v3"], "--alias"),
        (["--name", "a"], "no finished attributor"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, flags, words):
    assert register.main(["--model", f"{tmp_path}/none", *flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert words in lines[-1]
    assert "Traceback" not in "".join(lines)


def test_help_is_quick():
    command = [sys.executable, "-X", "importtime", "-m", "jobs.register", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20, check=True)
    assert "--manifold" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {"ray", "torch", "mlflow", "faiss"} & imported
