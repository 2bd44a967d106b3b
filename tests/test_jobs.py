"""The main job on small pictures, step by step as its user runs it, against independent oracles."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from conftest import draw, labelled, write_folder
from PIL import Image
from ray.train import WorkerGroupError

import manifpt
from manifpt.engine import session
from manifpt.jobs import (
    attribute,
    build_manifold,
    compute_artifacts,
    evaluate,
    extend,
    train_attribution,
)

ROOT = Path(__file__).parents[1]
JOBS = ["build_manifold", "compute_artifacts", "train_attribution", "evaluate", "attribute"]
HUGE = ["--num-actors", "99"]


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {p.name: np.asarray(Image.open(p), np.float64) for p in sorted(folder.iterdir())}


def brute_force(space: str, image: np.ndarray) -> np.ndarray:
    x = image.transpose(2, 0, 1) / 255
    if space == "freq":
        eps = 16 / 255 / np.sqrt(12)
        x = np.log(np.abs(np.fft.fftshift(np.fft.fft2(x), axes=(1, 2))) + eps)
    return x.ravel()


@pytest.mark.parametrize("space", ["rgb", pytest.param("freq", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_artifacts_equal_brute_force_from_the_images(
    whole_cluster, corpus, tmp_path, space, shards
):
    reals = ["--input", f"real={corpus}/manifold", "--space", space, "--shards", str(shards)]
    assert build_manifold.main([*reals, "--output", f"{tmp_path}/m"]) == 0
    flags = ["--input", *labelled(corpus), f"seen={corpus}/manifold"]
    flags += ["--manifold", f"{tmp_path}/m", "--output", f"{tmp_path}/a"]
    assert compute_artifacts.main(flags) == 0
    files = [
        str(p) for s in ("train", "validation", "test") for p in (tmp_path / "a" / s).iterdir()
    ]
    table = ds.dataset(files).to_table().to_pylist()
    assert len(table) == 240
    manifold = pixels(corpus / "manifold")
    names = list(manifold)
    vectors = np.stack([brute_force(space, image) for image in manifold.values()])
    for row in table:
        x = brute_force(space, np.asarray(Image.open(row["uri"]), np.float64))
        distance = np.sqrt(((x - vectors) ** 2).sum(1))
        if row["source"] == "seen":  # no real meets itself
            distance[names.index(Path(row["uri"]).name)] = np.inf
        best = int(distance.argmin())
        assert row["neighbor_id"] == f"real/{names[best]}"
        assert row["distance"] == pytest.approx(distance[best], rel=1e-5)
        np.testing.assert_allclose(row["artifact"], x - vectors[best], atol=2e-5)
        assert row["in_manifold"] == (row["source"] == "seen")


def test_the_chain_learns_and_its_metrics_are_those_of_its_scores(chain):
    metrics = json.loads((chain / "e" / "metrics.json").read_text())
    scores = ds.dataset(chain / "e" / "scores").to_table().to_pandas()
    right = (scores["source"] == scores["prediction"]).mean()
    assert metrics["accuracy"] == pytest.approx(right)
    assert metrics["images"] == len(scores)
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    assert metrics["accuracy"] > metrics["chance"] + 0.2
    from sklearn.metrics import balanced_accuracy_score, f1_score

    balanced = balanced_accuracy_score(scores["source"], scores["prediction"])
    assert metrics["balanced_accuracy"] == pytest.approx(balanced)
    macro = f1_score(scores["source"], scores["prediction"], average="macro")
    assert metrics["macro_f1"] == pytest.approx(macro)
    assert (chain / "e" / "confusion.png").stat().st_size > 1000


def test_evaluation_leaves_out_what_training_saw(chain, corpus):
    flags = ["--input", *labelled(corpus), "--model", f"{chain}/t", "--output", f"{chain}/e2"]
    assert evaluate.main(flags) == 0
    again = json.loads((chain / "e2" / "metrics.json").read_text())
    first = json.loads((chain / "e" / "metrics.json").read_text())
    assert again["confusion"] == first["confusion"]
    assert again["left_out"]["near_training"] == first["left_out"]["near_training"]
    near = first["near_training"]["images"]
    assert again["left_out"]["seen"] == 180 - first["images"] - near


def test_attribution_accounts_for_every_file_and_agrees_with_evaluation(chain, tmp_path, capsys):
    mixed = write_folder(tmp_path / "mixed", "stripes", range(1000, 1010))
    (mixed / "broken.png").write_bytes(b"no image")
    (mixed / "empty.jpg").write_bytes(b"")
    names = sorted(path.name for path in mixed.iterdir())
    lines = [f"mixed/{name},site {number % 3}" for number, name in enumerate(names)]
    (tmp_path / "crawl.csv").write_text("\n".join(["path,site", *lines]))
    flags = ["--input", f"{tmp_path}/crawl.csv", "--model", f"{chain}/t"]
    flags += ["--output", f"{tmp_path}/v", "--columns", "site"]
    assert attribute.main([*flags, "uri"]) == 2
    assert "--columns uri" in capsys.readouterr().err
    assert attribute.main(flags) == 0
    summary = json.loads((tmp_path / "v" / "summary.json").read_text())
    assert (summary["rows_in"], summary["ok"], summary["quarantined"]) == (12, 10, 2)
    assert summary["by_error"] == {"empty": 1, "unknown_format": 1}
    table = ds.dataset(tmp_path / "v" / "attributions").to_table().to_pandas()
    assert len(table) == 10
    assert set(table["status"]) == {"ok"}
    quarantine = ds.dataset(tmp_path / "v" / "quarantine").to_table().to_pandas()
    assert len(quarantine) == 2
    sites = {f"crawl/{n:08d}": f"site {n % 3}" for n in range(12)}
    assert sites == {r.id: r.site for part in (table, quarantine) for r in part.itertuples()}
    scores = ds.dataset(chain / "e" / "scores").to_table().to_pandas()
    both = table.merge(scores, on="sha256")
    assert (both["prediction_x"] == both["prediction_y"]).all()
    np.testing.assert_allclose(both["probability_x"], both["probability_y"], atol=1e-6)


def test_attribution_flags_copies_and_what_was_seen(chain, corpus, tmp_path):
    mixed = write_folder(tmp_path / "mixed", "stripes", range(1000, 1010))
    (mixed / "same bytes.png").write_bytes((mixed / "1003.png").read_bytes())
    Image.open(mixed / "1004.png").save(mixed / "same pixels.bmp")
    nearly = Image.open(mixed / "1005.png")
    nearly.putpixel((0, 0), tuple(255 - v for v in nearly.getpixel((0, 0))))
    nearly.save(mixed / "similar.png")
    (mixed / "z real.png").write_bytes((corpus / "manifold" / "0000.png").read_bytes())
    flags = ["--input", str(mixed), "--model", f"{chain}/t", "--output", f"{tmp_path}/v"]
    assert attribute.main(flags) == 0
    summary = json.loads((tmp_path / "v" / "summary.json").read_text())
    table = ds.dataset(tmp_path / "v" / "attributions").to_table().to_pandas()
    assert len(table) == 14
    found = manifpt.Attributor.load(f"{chain}/t").predict(mixed)
    pd.testing.assert_frame_equal(found[table.columns], table, check_dtype=False)
    copies = ds.dataset(tmp_path / "v" / "duplicates").to_table().to_pylist()
    assert [tuple(row.values())[:1] + tuple(row.values())[2:5] for row in copies] == [
        ("same bytes.png", "1003.png", "bytes", None),
        ("same pixels.bmp", "1004.png", "pixels", None),
        ("similar.png", None, None, "1005.png"),
    ]
    assert summary["duplicates"] == {"exact": 2, "near": 1}
    marked = table.set_index("id")
    trained = ds.dataset(
        [str(p) for s in ("train", "validation") for p in (chain / "a" / s).iterdir()]
    )
    seen = set(trained.to_table(["sha256"]).to_pydict()["sha256"])
    bytes_only = marked.drop(index="same pixels.bmp")
    assert (bytes_only["in_training"] == bytes_only["sha256"].isin(seen)).all()
    assert 0 < marked["in_training"].sum() < len(marked)
    assert marked.loc["same pixels.bmp", "in_training"] == marked.loc["1004.png", "in_training"]
    assert marked.loc["similar.png", "near_training"] == marked.loc["1005.png", "in_training"]
    assert not marked.loc["similar.png", "in_training"]
    assert list(marked.index[marked["near_manifold"].astype(bool)]) == ["z real.png"]
    assert summary["leaks"]["unavailable"] == []
    assert summary["leaks"]["in_training"] == marked["in_training"].sum()


def test_the_images_of_a_site_are_judged_together(chain, tmp_path):
    for kind in ("stripes", "blocks"):
        write_folder(tmp_path / kind, kind, range(3000, 3012))
    sites = {"stripes": "a.example", "blocks": "b.example"}
    lines = [f"{kind}/{n}.png,{sites[kind]}" for n in range(3000, 3012) for kind in sites]
    (tmp_path / "crawl.csv").write_text("\n".join(["url,site", *lines, "blocks/3000.png,"]))
    flags = ["--input", f"{tmp_path}/crawl.csv", "--model", f"{chain}/t"]
    assert attribute.main([*flags, "--output", f"{tmp_path}/v", "--group-by", "site"]) == 0
    table = ds.dataset(tmp_path / "v" / "groups").to_table().to_pandas().set_index("group")
    assert table["images"].to_dict() == {"a.example": 12, "b.example": 12}
    assert table["unknown_p"].isna().all()  # one validation image of a class is too few
    manifest = json.loads((chain / "t" / "manifest.json").read_text())
    counts = np.array([manifest["rows"]["train"][name] for name in manifest["classes"]])
    evidence = ds.dataset(tmp_path / "v" / "evidence").to_table().to_pandas()
    for site, rows in evidence.drop_duplicates("sha256").groupby("group"):
        likelihood = np.stack(rows["probabilities"]) / (counts / counts.sum())
        pooled = np.log(0.9 * likelihood + 0.1).sum(0)
        assert table.loc[site, "prediction"] == manifest["classes"][int(pooled.argmax())]
    alone = ds.dataset(tmp_path / "v" / "attributions").to_table().to_pandas()
    alone = alone[alone["site"].notna()]  # a row of no site is of no group
    right = alone["prediction"] == alone["site"].map(table["prediction"])
    assert table["agreeing"].mean() == pytest.approx(right.mean())
    summary = json.loads((tmp_path / "v" / "summary.json").read_text())
    assert summary["groups"] == {"groups": 2, "images": 24}
    assert summary["ok"] == 25


def test_a_source_is_added_to_an_attributor_from_few_images(chain, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    for number in range(4000, 4050):  # stripes of the other direction
        image = np.asarray(draw("stripes", number)).transpose(1, 0, 2)
        Image.fromarray(image).save(new / f"{number}.png")
    flags = [f"{chain}/t", "--add", f"columns={new}", "--output", f"{tmp_path}/x"]
    assert extend.main(flags) == 0
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["classes"] == ["blocks", "real", "stripes", "columns"]
    assert sum(manifest["rows"][s]["columns"] for s in ("train", "validation")) < 50
    places = {"old": f"{chain}/a", "new": f"{tmp_path}/x/artifacts"}
    for name, artifacts in places.items():
        scores = f"{tmp_path}/{name}-scores"
        flags = ["--input", artifacts, "--model", f"{tmp_path}/x", "--output", scores]
        assert evaluate.main(flags) == 0
    before, old, new = (
        json.loads((folder / "metrics.json").read_text())["accuracy"]
        for folder in (chain / "e", tmp_path / "old-scores", tmp_path / "new-scores")
    )
    assert new > 0.6
    assert old > before - 0.15
    assert manifest["extensions"][0]["classes"] == ["columns"]


def test_a_finished_job_does_nothing_again_and_other_settings_are_refused(chain, corpus, capsys):
    before = (chain / "m" / "manifest.json").read_bytes()
    reals = ["--input", f"real={corpus}/manifold", "--output", f"{chain}/m"]
    assert build_manifold.main([*reals, "--shards", "3"]) == 0
    assert (chain / "m" / "manifest.json").read_bytes() == before
    assert build_manifold.main([*reals, "--shards", "2"]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_wrong_manifold_is_refused(chain, built, corpus, tmp_path, capsys):
    flags = ["--input", f"{corpus}/manifold", "--model", f"{chain}/t", "--output", f"{tmp_path}/v"]
    assert attribute.main([*flags, "--manifold", built]) == 2
    assert "trained with manifold" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_another_manifold_is_an_explicit_choice_that_is_recorded(chain, corpus, tmp_path, capsys):
    reals = ["--input", f"{chain}/m", "--output", f"{tmp_path}/m", "--reals", "40"]
    assert build_manifold.main(reals) == 0
    images = ["--input", *labelled(corpus), "--manifold", f"{tmp_path}/m", "--split", "test"]
    assert compute_artifacts.main([*images, "--output", f"{tmp_path}/a"]) == 0
    flags = ["--input", f"{tmp_path}/a", "--model", f"{chain}/t", "--output", f"{tmp_path}/e"]
    assert evaluate.main(flags) == 2
    assert "trained with manifold" in capsys.readouterr().err
    assert evaluate.main([*flags, "--other-manifold"]) == 0
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    trained, other = (
        json.loads((folder / "manifest.json").read_text())["content_sha256"]
        for folder in (chain / "m", tmp_path / "m")
    )
    assert metrics["other_manifold"] == {"training": [trained], "test": [other]}


def test_the_logged_model_predicts_as_the_job_does(chain):
    import mlflow

    runs = mlflow.search_runs(
        experiment_names=["manifpt"], filter_string=f"params.output = '{chain}/t'"
    )
    run_id = runs.iloc[0]["run_id"]
    assert runs.iloc[0]["status"] == "FINISHED"
    models = mlflow.search_logged_models(filter_string=f"source_run_id = '{run_id}'")
    model = mlflow.pyfunc.load_model(f"models:/{models.iloc[0]['model_id']}")
    scores = ds.dataset(chain / "e" / "scores").to_table().to_pandas()
    table = ds.dataset(list(map(str, (chain / "a" / "test").iterdir()))).to_table().to_pandas()
    uris = table.set_index("id").loc[scores["id"], "uri"]
    images = [Path(uri).read_bytes() for uri in uris[:5]]
    found = model.predict(pd.DataFrame({"image": [*images, b"broken"]}))
    assert found["prediction"].tolist()[:5] == scores["prediction"].tolist()[:5]
    assert found["status"].tolist() == ["ok"] * 5 + ["quarantined"]


@pytest.mark.slow
def test_training_goes_on_after_a_worker_died_and_seeds_repeat(ray_session, chain, tmp_path):
    from manifpt.attribution.model import train, training_recipe

    options = training_recipe.TrainingRecipe(
        "resnet18", "standard", epochs=3, batch_size=32, seed=5
    )
    controls = [train.AttributorControl(num_workers=2, die_at=d) for d in (None, 1)]
    made = [
        train.train_attributor([f"{chain}/a"], f"{tmp_path}/{n}", options, control=control)
        for n, control in enumerate(controls)
    ]
    assert len(made[1]["history"]) == 3
    assert made[0]["history"] == made[1]["history"]
    assert made[0]["files"]["weights.pt"] == made[1]["files"]["weights.pt"]


@pytest.mark.parametrize(
    ("job", "flags", "words"),
    [
        (build_manifold, ["--input", "/no/such", "--output", "OUT"], "no such file"),
        (build_manifold, ["--input", "CORPUS", "--output", "OUT", "--space", "clip"], "--space"),
        (build_manifold, ["--input", "CORPUS", "--outptu", "x", "--output", "OUT"], "--outptu"),
        (build_manifold, ["--input", "CORPUS", "--output", "OUT", *HUGE], "too small"),
        (build_manifold, ["--input", "TEXT", "--output", "OUT"], "decoded"),
        (build_manifold, ["--output", "OUT"], "--input: give the real"),
        (compute_artifacts, ["--input", "CORPUS", "--output", "OUT"], "--manifold"),
        (attribute, ["--input", "CORPUS", "--model", "/none", "--output", "OUT"], "no finished"),
        (extend, ["x", "--output", "OUT"], "--add"),
        (train_attribution, ["--input", "CORPUS", "--output", "OUT", "--backbone", "x",
                             "--space", "image"], "--backbone"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_leave_nothing(
    ray_session, corpus, tmp_path, capsys, job, flags, words
):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_text("hello")
    names = {"CORPUS": f"{corpus}/manifold", "TEXT": str(text), "OUT": f"{tmp_path}/out"}
    assert job.main([names.get(flag, flag) for flag in flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if ": " in line]
    assert words in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert not (tmp_path / "out").exists()


def test_what_a_task_of_a_training_finds_damaged_is_one_line(chain, tmp_path, capsys):
    shutil.copytree(chain / "a", tmp_path / "a")
    part = next((tmp_path / "a" / "train").iterdir())
    part.write_bytes(part.read_bytes()[:500])
    flags = ["--input", f"{tmp_path}/a", "--output", f"{tmp_path}/t", "--backbone", "resnet18"]
    assert train_attribution.main(flags) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"train_attribution: {part}: is damaged")
    failed = WorkerGroupError("truncated", {0: RuntimeError(f"a\nmanifpt.errors.Any: {part}\nb")})
    assert str(session.cause(failed)) == str(part)


def test_options_come_from_a_file_and_flags_win(ray_session, corpus, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(f"input: [real={corpus}/manifold]\noutput: {tmp_path}/m\nshards: 5\n")
    flags = ["--config", str(config), "--shards", "2", "--json", f"{tmp_path}/s.json"]
    assert build_manifold.main(flags) == 0
    assert len(json.loads((tmp_path / "m" / "manifest.json").read_text())["shards"]) == 2
    assert json.loads((tmp_path / "s.json").read_text())["reals"] == 60


@pytest.mark.parametrize("name", [*JOBS, "build_benchmark", "pretrain_embedding", "quickstart"])
def test_help_is_quick_and_explains(name):
    command = [sys.executable, "-X", "importtime", "-m", f"jobs.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20, check=True)
    assert "default" in done.stdout
    assert "--output" in done.stdout
    heavy = {"ray", "torch", "mlflow", "faiss"}
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not heavy & imported
