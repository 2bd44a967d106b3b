"""Sweeps as a user runs them, on a tiny corpus: legs, budgets, restarts, MLflow."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml
from conftest import all_cpus
from mlflow import MlflowClient
from PIL import Image

from manifpt import storage
from manifpt.audit.training_audit import TRAINED
from manifpt.engine import pools
from manifpt.engine.pipeline import READER_MEMORY
from manifpt.tuning import sweep
from manifpt.tuning.study import capacity_of_trials
from manifpt.tuning.trial import PROCESS_MEMORY, Sweep, trial_memory

pytestmark = pytest.mark.usefixtures("whole_cluster")
ROOT = Path(__file__).parents[2]
TINY = {"backbone": "resnet18", "stem": "standard", "batch_size": 32, "patience": 0}


def config(folder, corpus, **options):
    """Write a sweep's file; return the flags that run it."""
    given = {"fixed": TINY | {"epochs": 4}, "output": f"{folder}/sweep", "grace": 1, "reduction": 2}
    given |= {"input": [f"{corpus}/labelled"], "reals": [f"{corpus}/manifold"], **options}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(given))
    return ["--config", str(path), "--json", f"{folder}/summary.json"]


def results(folder):
    found = sorted(Path(folder, "sweep", "trials").glob("*/result.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def children(run_id):
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_run(run_id).info.experiment_id
    return client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")


def last_sweep():
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("manifpt").experiment_id
    order = ["attributes.start_time DESC"]
    return client.search_runs([experiment], "tags.`manifpt.job` = 'sweep'", order_by=order)[0]


@pytest.fixture(scope="module")
def swept(ray_session, corpus, tmp_path_factory):
    """Eight trials with early stopping, two at once on four logical CPUs."""
    folder = tmp_path_factory.mktemp("swept")
    search = {"space": ["rgb", "freq"], "learning_rate": {"low": 1e-8, "high": 1e-2, "log": True}}
    flags = config(folder, corpus, search=search, trials=8)
    with all_cpus():
        assert sweep.main(flags) == 0
    return folder, flags, last_sweep()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_end_early_and_leave_nothing_behind(swept):
    folder, _, _ = swept
    found = results(folder)
    assert {r["status"] for r in found.values()} <= {"finished", "stopped"}
    assert len(found) == 8
    stopped = [r for r in found.values() if r["status"] == "stopped"]
    assert stopped
    assert all(r["epochs"] < 4 for r in stopped)
    # 60 reals and 180 images in each of the two spaces, whatever the trials asked for.
    assert sum(r["embedded"] for r in found.values()) == 2 * (60 + 180)
    assert ray.available_resources()["CPU"] == 4
    assert not storage.exists(f"{folder}/sweep/_tune")


@pytest.mark.slow
def test_each_trial_is_a_run_below_the_sweeps(swept):
    folder, _, parent = swept
    found = results(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert parent.info.status == "FINISHED"
    runs = {run.data.tags["manifpt.key"]: run for run in children(parent.info.run_id)}
    assert set(runs) == set(found)
    status = {"finished": "FINISHED", "stopped": "KILLED"}
    for key, run in runs.items():
        assert run.info.status == status[found[key]["status"]]
        history = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_metric_history(
            run.info.run_id, "validation_accuracy"
        )
        assert [m.step for m in history] == list(range(found[key]["epochs"]))
        assert run.data.params["learning_rate"] == str(found[key]["settings"]["learning_rate"])
    best = [key for key, run in runs.items() if run.data.tags.get("manifpt.best") == "true"]
    assert best == [summary["best"]]
    top = max(r["accuracy"] for r in found.values() if r["status"] == "finished")
    assert found[best[0]]["accuracy"] == top == summary["validation_accuracy"]
    assert 0 < summary["test_best"]["low"] <= summary["test_best"]["accuracy"] <= 1
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    files = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.txt", "importance.json", "parallel_coordinates.png"} <= files


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_same_command_repeats_nothing_and_a_larger_budget_goes_on(swept):
    folder, flags, _ = swept
    before = results(folder)
    assert sweep.main(flags) == 0
    assert results(folder) == before
    assert not children(last_sweep().info.run_id)
    assert sweep.main([*flags, "--trials", "9"]) == 0
    after = results(folder)
    assert {key: after[key] for key in before} == before
    assert len(after) == 9


@pytest.mark.slow
def test_a_target_ends_the_study(ray_session, corpus, tmp_path):
    search = {"learning_rate": {"low": 1e-3, "high": 1e-2}}
    flags = config(
        tmp_path,
        corpus,
        search=search,
        trials=6,
        max_concurrent_trials=1,
        fixed=TINY | {"epochs": 1},
    )
    given = ["--target-metric", "0.1", "--no-early-stopping", "--register", "swept"]
    assert sweep.main([*flags, *given]) == 0
    (only,) = results(tmp_path).values()
    assert only["status"] == "finished"
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    version = client.get_model_version_by_alias("swept", "champion")
    assert version.run_id == last_sweep().info.run_id


@pytest.mark.slow
def test_a_sweep_is_audited_once_before_its_trials(ray_session, corpus, tmp_path, capsys):
    root = tmp_path / "images"
    shutil.copytree(f"{corpus}/labelled/stripes", root / "stripes")
    (root / "real").mkdir()
    for path in Path(corpus, "labelled", "real").iterdir():
        Image.open(path).save(root / "real" / f"{path.stem}.jpg")
    search = {"learning_rate": [1e-3, 2e-3]}
    flags = config(
        tmp_path,
        corpus,
        search=search,
        sampler="grid",
        input=[str(root)],
        fixed=TINY | {"epochs": 1},
    )
    assert sweep.main(flags) == 3
    assert "the file property format reveals the class" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()
    assert sweep.main([*flags, "--accept-biased"]) == 0
    assert capsys.readouterr().err.count("audit: ") == 1
    assert (tmp_path / "sweep" / "audit" / "audit.md").exists()
    models = [result["attributor"] for result in results(tmp_path).values()]
    notes = [storage.read_json(f"{model}/manifest.json")["audit"]["note"] for model in models]
    assert notes == [TRAINED] * 2
    assert sweep.main(flags) == 3  # without the option again, it leaves all as it is
    assert [result["attributor"] for result in results(tmp_path).values()] == models


@pytest.mark.slow
def test_time_that_is_up_interrupts_and_frees_what_it_held(ray_session, corpus, tmp_path, capsys):
    flags = config(tmp_path, corpus, search={"learning_rate": [1e-3, 2e-3]}, fixed={"epochs": 500})
    assert sweep.main([*flags, "--hours", "0.008", "--no-early-stopping"]) == 2
    assert "give more --hours" in capsys.readouterr().err
    assert not results(tmp_path)
    assert {run.info.status for run in children(last_sweep().info.run_id)} == {"KILLED"}
    for _ in range(20):
        if ray.available_resources().get("CPU") == 4:
            break
        time.sleep(1)
    assert ray.available_resources()["CPU"] == 4


@pytest.mark.slow
def test_a_trial_that_fails_is_told_and_the_others_go_on(ray_session, corpus, tmp_path):
    search = {"backbone": ["resnet18", "no_such_network"]}
    flags = config(tmp_path, corpus, search=search, sampler="grid", fixed={"epochs": 1})
    assert sweep.main(flags) == 0
    found = {r["chosen"]["backbone"]: r for r in results(tmp_path).values()}
    assert found["resnet18"]["status"] == "finished"
    assert found["no_such_network"]["status"] == "failed"
    assert "no_such_network" in found["no_such_network"]["error"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_driver_that_is_killed_goes_on(corpus, tmp_path):
    search = {"learning_rate": [1e-3, 2e-3, 3e-3], "augment": ["none", "shift"]}
    flags = config(tmp_path, corpus, search=search, sampler="grid", seeds=[0, 1])
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "tuning.sweep", *flags]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    while not results(tmp_path):
        assert process.poll() is None
        time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = results(tmp_path)
    time.sleep(15)
    assert (
        subprocess.run(command, cwd=ROOT, env=environment, timeout=900, check=False).returncode == 0
    )
    after = results(tmp_path)
    assert len(after) == 6
    assert {key: after[key] for key in before} == before
    assert all(len(r["accuracies"]) == 2 for r in after.values())
    killed = [r for r in children_of_all() if r.info.status == "RUNNING"]
    assert not killed


def children_of_all():
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("manifpt").experiment_id
    return client.search_runs([experiment], max_results=1000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_population_exchanges_weights(ray_session, corpus, tmp_path):
    search = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}
    flags = config(tmp_path, corpus, search=search, sampler="pbt", trials=3)
    assert sweep.main(flags) == 0
    found = results(tmp_path)
    assert len(found) == 3
    assert all(r["epochs"] == 4 for r in found.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_accuracy_and_speed_make_a_front(ray_session, corpus, tmp_path, capsys):
    search = {"space": ["rgb", "image"], "backbone": ["mobilenet_v3_small", "resnet18"]}
    flags = config(tmp_path, corpus, search=search, sampler="grid", fixed={"epochs": 2})
    objectives = ["--objectives", "accuracy", "images_per_second"]
    assert sweep.main([*flags, *objectives]) == 0
    assert all(r["images_per_second"] > 0 for r in results(tmp_path).values())
    assert "*" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("has", "asked", "expected"),
    [
        ({"CPU": 2}, None, (1, {"CPU": 2}, 1)),
        ({"CPU": 4}, None, (1, {"CPU": 2}, 2)),
        ({"CPU": 16}, None, (3, {"CPU": 4}, 4)),
        ({"CPU": 64, "GPU": 8}, None, (1, {"CPU": 2, "GPU": 1}, 8)),
        ({"CPU": 8, "GPU": 8}, 2, (2, {"CPU": 3, "GPU": 2}, 2)),
        ({"CPU": 1}, None, (1, {"CPU": 1}, 1)),
    ],
)
def test_concurrency_comes_from_the_cluster(monkeypatch, has, asked, expected):
    monkeypatch.setattr(pools, "capacity", lambda: has)
    count, share, fit = capacity_of_trials(asked, None)
    assert share.pop("memory") == trial_memory(count)
    assert (count, share, fit) == expected


@pytest.mark.parametrize(("trials", "expected"), [(9, 4), (3, 3), (1, 1), (0.5, 1)])
def test_trials_run_at_once_as_far_as_memory_reaches(monkeypatch, trials, expected):
    cache = PROCESS_MEMORY + READER_MEMORY
    has = {"CPU": 16, "memory": cache + trials * trial_memory(3)}
    monkeypatch.setattr(pools, "capacity", lambda: has)
    count, share, fit = capacity_of_trials(None, None)
    assert (count, fit) == (3, expected)
    # Where not even one fits by memory, one runs all the same, and holds none.
    assert share.get("memory") == (trial_memory(3) if trials >= 1 else None)
    held = Sweep(None, "", "", share, count).bundles()
    assert sum(bundle.get("CPU", 0) for bundle in held) == share["CPU"]
    assert sum(bundle.get("memory", 0) for bundle in held) == share.get("memory", 0)
