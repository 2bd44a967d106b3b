"""An extended attributor: what stays as it was; and how it compares with one trained anew."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from conftest import BENCHMARK, mobilenet

from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.attribution.model.extend import extend_attributor, extended
from manifpt.attribution.model.network import AttributionNetwork, Design, outputs
from manifpt.attribution.model.train import AttributorControl, train_attributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.evaluation.evaluate import evaluate
from manifpt.manifold.build import ManifoldSettings, build_manifold
from manifpt.spaces import SpaceSettings

VECTORS, MAPS = (24,), (3, 16, 16)


@pytest.mark.parametrize("fusion", ["late", "early"])
def test_the_last_layers_are_all_that_an_extension_changes(fusion):
    design = Design.of((VECTORS, MAPS), 3, "resnet18", "half", fusion)
    torch.manual_seed(0)
    network = AttributionNetwork(design).eval()
    rng = np.random.default_rng(0)
    artifacts = [rng.normal(0, 1, (5, *shape)).astype(np.float32) for shape in design.shapes]
    before, features = outputs(network, artifacts)
    layers = []
    for layer in network.last_layers():
        weight, bias = (p.detach().double().numpy() for p in layer.parameters())
        layers.append((np.concatenate([weight, weight[:1]]), np.append(bias, 7.0)))
    found = outputs(extended(network, layers), artifacts).logits
    assert found.shape == (5, before.shape[1], 4)
    np.testing.assert_allclose(found[..., :3], before, atol=1e-5)
    for head, (f, (weight, bias)) in enumerate(zip(features, layers, strict=True)):
        np.testing.assert_allclose(found[:, head], f @ weight.T + bias, atol=1e-4)


OLD, NEW, SEEDS, FEW = ("real", "gan", "vae", "waveletflow"), "ddpm", (0, 1, 2), (40, 10)


def some_of_benchmark(folder, sources, seed=None):
    """A benchmark of some sources; with a seed, of the new one FEW images to train and validate."""
    card = json.loads((BENCHMARK / "card.json").read_text())
    files = [f for f in card["files"] if f["source"] in sources and f["split"] != "manifold"]
    for file in files:
        data = (BENCHMARK / file["path"]).read_bytes()
        if file["source"] == NEW and seed is not None and file["split"] != "test":
            data = few(data, FEW[file["split"] == "validation"], seed)
        target = folder / file["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (folder / "card.json").write_text(json.dumps(card | {"files": files}))
    return str(folder)


def few(data, count, seed):
    sink = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as tar,
        tarfile.open(fileobj=sink, mode="w:gz") as out,
    ):
        members = tar.getmembers()
        for n in sorted(np.random.default_rng(seed).permutation(len(members))[:count]):
            out.addfile(members[n], tar.extractfile(members[n]))
    return sink.getvalue()


def recalls(artifacts, model, output):
    metrics = evaluate([artifacts], model, output)
    found = {name: row["recall"] for name, row in metrics["per_class"].items()}
    old = float(np.mean([found[name] for name in OLD]))
    return {"old": old, "new": found.get(NEW), "all": metrics["balanced_accuracy"]}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_extension_is_nearly_as_good_as_training_anew(ray_session, tmp_path):
    manifold = f"{tmp_path}/m"
    spaces = SpaceSettings(sl_network="mobilenet_v2", sl_weights=mobilenet(), network_size=96)
    build_manifold([str(BENCHMARK)], manifold, space="sl", settings=ManifoldSettings(spaces=spaces))

    def made(name, sources, seed=None):
        inputs = some_of_benchmark(tmp_path / f"images-{name}", sources, seed)
        compute_artifacts([inputs], f"{tmp_path}/{name}", ArtifactRecipe([manifold]))
        return f"{tmp_path}/{name}"

    test, old = made("all", (*OLD, NEW)), made("old", OLD)
    rows: dict[str, list[dict[str, float]]] = {}
    control = AttributorControl(num_workers=1)
    for seed in SEEDS:
        options = TrainingRecipe("resnet18", epochs=40, seed=seed)
        base = f"{tmp_path}/base-{seed}"
        train_attributor([old], base, options, control=control)
        models = {"before": base}
        added = some_of_benchmark(tmp_path / f"new-{seed}", (NEW,), seed)
        for head in ("linear", "lda"):
            models[head] = f"{tmp_path}/{head}-{seed}"
            extend_attributor(base, [added], models[head], head=head)
        for name, artifacts in (
            ("anew, 50 new images", made(f"few-{seed}", (*OLD, NEW), seed)),
            ("anew, 400 new images", test),
        ):
            models[name] = f"{tmp_path}/{name.replace(' ', '-')}-{seed}"
            train_attributor([artifacts], models[name], options, control=control)
        for name, model in models.items():
            rows.setdefault(name, []).append(recalls(test, model, f"{model}-evaluation"))
    means = {
        name: {k: np.mean([f[k] for f in found]) for k in ("old", "new", "all") if found[0][k]}
        for name, found in rows.items()
    }
    for name, found in rows.items():
        cells = []
        for k in means[name]:
            values = [f[k] for f in found]
            cells.append(f"{k} {means[name][k]:.3f} ({min(values):.3f}-{max(values):.3f})")
        print(f"{name:<22}", "  ".join(cells))
    anew = means["anew, 50 new images"]
    assert means["lda"]["all"] > anew["all"] - 0.05
    assert means["lda"]["old"] > means["before"]["old"] - 0.1
