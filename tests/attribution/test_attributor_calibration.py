"""From artifacts to decisions: what is fitted on validation, evaluated, and used, by the jobs."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import torch
from conftest import write_folder
from sklearn.metrics import roc_auc_score

from manifpt import storage
from manifpt.artifacts.branches import open_artifacts
from manifpt.attribution.model.attributor_calibration import calibrate_attributor, network_of
from manifpt.attribution.model.network import AttributionNetwork, Design, outputs
from manifpt.attribution.model.stream import dataset, moments
from manifpt.attribution.model.trained import TrainedAttributor, publish_attributor
from manifpt.attribution.unknown.decision import Rule, decide
from manifpt.attribution.unknown.profiles import Profiles
from manifpt.engine import pools
from manifpt.jobs import attribute, compute_artifacts, evaluate, train_attribution
from manifpt.outputs import claims
from manifpt.storage import tensors

CLASSES = ["real", "stripes"]  # and blocks are unknown


@pytest.fixture(scope="module")
def out(built, tmp_path_factory) -> Path:
    """Artifacts of three sources, and an attributor of two of them, its trunk untrained."""
    out = tmp_path_factory.mktemp("calibrate")
    for kind in (*CLASSES, "blocks"):
        write_folder(out / "labelled" / kind, kind, range(1000, 1100))
    flags = ["--input", f"{out}/labelled", "--manifold", built, "--output", f"{out}/a"]
    assert compute_artifacts.main(flags) == 0
    branches = open_artifacts([f"{out}/a"])
    design = Design.of(((3, 16, 16),), 2, "resnet18", "half")
    torch.manual_seed(0)
    build = partial(network_of, design, AttributionNetwork(design).state_dict())
    made, facts = calibrate_attributor(build, branches, CLASSES, pools.ANY)
    with claims.claim(f"{out}/t", "attributor", "0" * 64) as claim:
        publish_attributor(claim, made, facts)
    return out


@pytest.fixture(scope="module")
def evaluated(out) -> Path:
    flags = ["--input", f"{out}/a", "--model", f"{out}/t", "--output", f"{out}/e"]
    assert evaluate.main(flags) == 0
    return out


def test_features_are_what_the_last_layers_are_given():
    torch.manual_seed(0)
    for fusion, widths in (("late", [512, 512]), ("early", [1024])):
        network = AttributionNetwork(Design.of(((3, 8, 8), (12,)), 4, "resnet18", "full", fusion))
        artifacts = [np.random.default_rng(0).normal(size=(5, *s)) for s in ((3, 8, 8), (12,))]
        found = outputs(network.eval(), artifacts, batch_size=2)
        assert [f.shape for f in found.features] == [(5, width) for width in widths]
        for n, layer in enumerate(network.last_layers()):
            logits = torch.nn.functional.linear(
                torch.from_numpy(found.features[n]), layer.weight, layer.bias
            )
            np.testing.assert_allclose(found.logits[:, n], logits.detach(), atol=1e-5)


def test_what_is_fitted_is_in_the_manifest_and_only_of_its_classes(out):
    manifest = storage.read_json(f"{out}/t/manifest.json")
    assert manifest["calibration"]["loss"] <= manifest["calibration"]["loss_before"] + 1e-6
    assert manifest["weights"] != [1.0]
    found = manifest["open_set"]
    assert found["scores"] == ["max_probability", "distance", "direction"]
    validation = manifest["rows"]["validation"]
    assert list(found["false_rejection_by_class"]) == CLASSES
    rejected = sum(n * found["false_rejection_by_class"][c] for c, n in validation.items())
    assert rejected <= found["false_rejection"] * sum(validation.values())
    counts = storage.read_json(f"{out}/a/manifest.json")["classes"]
    for split in ("train", "validation"):
        assert manifest["rows"][split] == {name: counts[split][name] for name in CLASSES}
    assert manifest["calibration"]["rows"] == sum(manifest["rows"]["validation"].values())
    seen = TrainedAttributor.open(f"{out}/t").seen()
    assert len(seen) == sum(sum(rows.values()) for rows in manifest["rows"].values())
    entry = manifest["files"]["unknown.npz"]
    assert storage.sha256(f"{out}/t/unknown.npz") == entry["sha256"]


def test_metrics_are_those_of_the_scores(evaluated):
    metrics = json.loads((evaluated / "e" / "metrics.json").read_text())
    known, unknown = (
        ds.dataset(evaluated / "e" / name).to_table().to_pandas() for name in ("scores", "unknown")
    )
    assert set(unknown["source"]) == {"blocks"}
    assert metrics["left_out"]["other_source"] == len(unknown)
    assert metrics["images"] == len(known)
    found = metrics["open_set"]
    truth = np.repeat([0, 1], [len(known), len(unknown)])
    both = np.concatenate([known["unknown_score"], unknown["unknown_score"]])
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, both))
    each = np.concatenate([np.stack(t["unknown_scores"]) for t in (known, unknown)])
    for n, values in enumerate(each.T):
        name = TrainedAttributor.open(f"{evaluated}/t").open_set.score_names[n]
        expected = pytest.approx(roc_auc_score(truth, values))
        assert found["sources"]["blocks"]["scores"][name]["auroc"] == expected
    assert found["false_rejection"] == (known["unknown_p"] <= 0.05).mean()
    each = (known["unknown_p"] <= 0.05).groupby(known["source"]).mean()
    assert metrics["false_rejection_by_class"] == each.to_dict()
    assert found["unknown_found"] == (unknown["decision"] == "unknown").mean()
    for when, column in (("before", "uncalibrated"), ("after", "probabilities")):
        right = [p[CLASSES.index(s)] for p, s in zip(known[column], known["source"], strict=True)]
        nll = metrics["calibration"][when]["negative_log_likelihood"]
        assert nll == pytest.approx(-np.log(right).mean())
    assert (evaluated / "e" / "reliability.png").stat().st_size > 1000


def test_the_job_decides_as_the_evaluation_and_by_the_rule_it_is_given(evaluated, tmp_path):
    flags = ["--input", f"{evaluated}/labelled", "--model", f"{evaluated}/t", "--sure", "0.6"]
    flags += ["--false-rejection", "0.3", "--group-by", "folder", "--output", f"{tmp_path}/v"]
    assert attribute.main(flags) == 0
    verdicts = ds.dataset(tmp_path / "v" / "attributions").to_table().to_pandas()
    scores = ds.dataset([str(p) for n in ("scores", "unknown") for p in
                         (evaluated / "e" / n).iterdir()]).to_table().to_pandas()  # fmt: skip
    both = verdicts.merge(scores, on="sha256")
    assert len(both) == len(scores) > 10
    for name in ("unknown_score", "unknown_p"):
        np.testing.assert_allclose(both[f"{name}_x"], both[f"{name}_y"], rtol=1e-4)
    expected = decide(np.stack(both["probabilities"]), CLASSES, both["unknown_p_x"], Rule(0.6, 0.3))
    assert both["decision_x"].tolist() == expected.tolist()
    summary = json.loads((tmp_path / "v" / "summary.json").read_text())
    assert summary["decisions"] == {
        name: int((verdicts["decision"] == name).sum()) for name in summary["decisions"]
    }
    assert sum(summary["decisions"].values()) == 300
    groups = ds.dataset(tmp_path / "v" / "groups").to_table().to_pandas().set_index("group")
    evidence = ds.dataset(tmp_path / "v" / "evidence").to_table().to_pandas()
    where = evidence.merge(scores, on="sha256")
    # Sums of other batches are rounded otherwise, and so may be a rank.
    of_logits = [np.stack(where[f"coordinates_{side}"])[:, :-1] for side in "xy"]
    np.testing.assert_allclose(*of_logits, rtol=1e-3, atol=1e-4)
    open_set = TrainedAttributor.open(f"{evaluated}/t").open_set
    profiles = Profiles(open_set.coordinates, open_set.labels)
    for name, rows in evidence.groupby("group"):
        mine = rows.drop_duplicates("sha256").sort_values("sha256")
        p = profiles.p_value(np.stack(mine["coordinates"]), 0.1)
        assert groups.loc[name, "unknown_p"] == pytest.approx(p)
        assert (groups.loc[name, "decision"] == "unknown") == (p <= 0.3)


def test_an_attributor_without_an_open_set_opens_and_calls_nothing_unknown(out, tmp_path):
    old = storage.read_json(f"{out}/t/manifest.json")
    del old["files"]["unknown.npz"], old["open_set"], old["calibration"], old["manifest_sha256"]
    storage.write_json(f"{tmp_path}/manifest.json", old)
    storage.copy(f"{out}/t/weights.pt", f"{tmp_path}/weights.pt")
    attributor = TrainedAttributor.open(str(tmp_path))
    found = attributor.outputs([np.zeros((2, 3 * 16 * 16), np.float32)])
    assert attributor.unknown(found) is None
    assert "unknown" not in decide(attributor.fused(found.logits), CLASSES).tolist()


def test_normalisation_is_that_of_the_chosen_sources(out):
    branches = open_artifacts([f"{out}/a"])
    train = dataset(branches, "train", CLASSES)
    (found,) = moments(branches, CLASSES, train)
    table = ds.dataset([f"{out}/a/{p}" for p in branches[0].files("train")]).to_table()
    rows = table.filter(np.isin(np.array(table["source"]), CLASSES))
    maps = tensors.from_column(rows["artifact"]).reshape(-1, 3, 16, 16).astype(np.float64)
    np.testing.assert_allclose(found["mean"], maps.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["std"], maps.std((0, 2, 3)), rtol=1e-6)
    assert train.count() == len(maps)
    every = sorted(branches[0].manifest["classes"]["train"])
    assert moments(branches, every, train) == [branches[0].manifest["moments"]["train"]]


@pytest.mark.slow
def test_a_training_on_some_sources_knows_them_alone(out, tmp_path):
    flags = ["--input", f"{out}/a", "--sources", *CLASSES, "--backbone", "resnet18", "--stem"]
    flags += ["half", "--epochs", "3", "--batch-size", "16", "--output", f"{tmp_path}/t"]
    assert train_attribution.main(flags) == 0
    attributor = TrainedAttributor.open(f"{tmp_path}/t")
    assert attributor.classes == CLASSES
    assert attributor.open_set is not None
    assert attributor.manifest["weights"] != [1.0]


def test_a_source_that_is_not_there_is_named(out, tmp_path, capsys):
    flags = ["--input", f"{out}/a", "--sources", "real", "dots", "--output", f"{tmp_path}/t"]
    assert train_attribution.main(flags) == 2
    assert "--sources dots: no training image" in capsys.readouterr().err.splitlines()[-1]
