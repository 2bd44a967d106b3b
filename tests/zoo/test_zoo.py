import json

import numpy as np
import pytest
import torch
from conftest import BENCHMARK

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, plan, read_unit
from manifpt.zoo import gan
from manifpt.zoo.benchmark_card import card_markdown, files_off_card
from manifpt.zoo.build_benchmark import (
    block_means,
    distinct,
    is_publishable,
    pixel_digests,
    quality_of,
    split_reals,
)
from manifpt.zoo.flow import Flow
from manifpt.zoo.generator_training import fit_generator, sample
from manifpt.zoo.image_tars import tar_of
from manifpt.zoo.models import MODELS, choices, read_recipes
from manifpt.zoo.reals import Reals, read_reals
from manifpt.zoo.recipe import Recipe

VARIANTS = [
    *((model, {}) for model in MODELS),
    *(("gan", {"loss": name}) for name in gan.LOSSES),
    *(("gan", {"upsampling": name}) for name in gan.UPSAMPLINGS),
    *(("gan", {"normalisation": name}) for name in gan.NORMALISATIONS),
    *(("gan", {"discriminator_normalisation": name}) for name in gan.DISCRIMINATORS),
    ("vae", {"reconstruction": "perceptual"}),
    ("gan", {"skip": True, "activation": "elu", "critic_steps": 2}),
]


@pytest.mark.parametrize(("model", "options"), VARIANTS)
def test_every_choice_trains_and_samples_repeatably(model, options):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    sampling = {"sampling_steps": 3} if MODELS[model][0] == "score" else {}
    recipe = Recipe(model, model, 1, steps=2, batch_size=16, options=options, sampling=sampling)
    first, curve = fit_generator(recipe, images)
    assert all(np.isfinite(list(row.values())).all() for row in curve)
    again, _ = fit_generator(recipe, images)
    one, two = sample(first, 5, seed=3), sample(again, 5, seed=3)
    assert one.shape == (5, 16, 16, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, sample(first, 5, seed=4))


def test_shipped_recipes_are_factorial():
    recipes = {recipe.name: recipe for recipe in read_recipes("fashion")}
    designs = {
        name: {k: v for k, v in choices(recipe).items() if not k.startswith("critic_")}
        for name, recipe in recipes.items()
        if recipe.model == "gan"
    }
    for name, design in designs.items():
        varied = {key for key, value in design.items() if value != designs["gan"][key]}
        assert varied <= {"upsampling", "loss"} or len(varied) == 1, name
    grid = {(design["upsampling"], design["loss"]) for design in designs.values()}
    ups, losses = ("transposed", "nearest", "bilinear"), ("nonsaturating", "hinge", "wgan_gp")
    assert {(up, loss) for up in ups for loss in losses} <= grid


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{name: a, model: gun, seed: 1, steps: 1}", "model 'gun'"),
        ("{name: a, model: gan, seed: 1, steps: 1, options: {los: hinge}}", "'los'"),
        ("{name: a, model: gan, seed: 1}", "steps"),
    ],
)
def test_wrong_recipes_are_one_line(tmp_path, line, words):
    (tmp_path / "r.yaml").write_text(f"recipes:\n- {line}")
    with pytest.raises(ManifptError, match=words):
        read_recipes(str(tmp_path / "r.yaml"))


def test_training_data_can_be_a_part_of_the_reals():
    images = np.arange(30, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    reals = Reals(images, np.arange(30) % 3)
    part = reals.subset({"classes": [0, 2], "images": 10}, seed=0)
    assert len(part.images) == 10
    assert set(part.labels.tolist()) == {0, 2}
    assert np.array_equal(part.images[:, 0, 0, 0] % 3, part.labels)
    with pytest.raises(ManifptError, match="classes"):
        Reals(images).subset({"classes": [0]}, seed=0)


def test_torchvision_datasets_are_read_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    raw = tmp_path / "hub" / "datasets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = np.array([0x803, *images.shape], ">u4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = np.array([0x801, 7], ">u4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    reals = read_reals(["torchvision:MNIST"], None)
    assert np.array_equal(reals.images[..., 0], images)
    assert np.array_equal(reals.labels, labels)
    with pytest.raises(ManifptError, match="choose one of"):
        read_reals(["torchvision:ImageNet"], None)


def test_the_flow_is_a_flow():
    torch.manual_seed(0)
    flow = Flow(1, 16, depth=2, width=8)
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x = torch.rand(2, 1, 16, 16) * 2 - 1
    latents, log_det = flow(x)
    torch.testing.assert_close(flow.inverse(latents), x, atol=1e-4, rtol=1e-4)

    def flat(v):
        return torch.cat([z.flatten() for z in flow(v)[0]])

    jacobian = torch.autograd.functional.jacobian(flat, x[:1]).reshape(256, 256)
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(log_det[0].item(), rel=1e-3)


def test_splits_share_no_image_and_copies_are_left_out():
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), dtype=np.uint8)
    images[10:20] = images[0]
    splits, pool = split_reals(images, {"manifold": 10, "train": 5, "test": 5}, seed=0)
    rows = np.concatenate(list(splits.values()))
    assert len({images[r].tobytes() for r in rows}) == 20
    held_out = np.concatenate([splits["train"], splits["test"]])
    assert not {images[r].tobytes() for r in held_out} & {images[r].tobytes() for r in pool}


def test_equal_images_give_equal_tars():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    assert tar_of(images) == tar_of(images.copy())


@pytest.mark.parametrize(
    ("name", "recipes", "mib"),
    [
        pytest.param("gm-fashionmnist", "fashion", 16, marks=pytest.mark.slow),
        ("gm-mnist", "digits", 6),
    ],
)
def test_the_shipped_benchmarks_are_what_their_cards_say(name, recipes, mib):
    folder = BENCHMARK.parent / name
    assert files_off_card(str(folder)) == []
    card = json.loads((folder / "card.json").read_text())
    assert card_markdown(card) == (folder / "README.md").read_text()
    tables = [t for u in plan([str(folder)]) for t in read_unit(u, DecodeRule(28))]
    hashes = [h for t in tables for h in t["pixel_sha256"].to_pylist()]
    assert len(hashes) == len(set(hashes)) == 4600 + 600 * len(card["recipes"])
    known = {recipe.name: recipe.asdict() for recipe in read_recipes(recipes)}
    for name, facts in card["recipes"].items():
        assert known[name].items() <= facts.items()
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < mib * 2**20


def test_the_gate_refuses_copies_and_noise():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16] / 16
    waves = np.sin(rng.uniform(2, 9, (300, 1, 1)) * x + rng.uniform(2, 9, (300, 1, 1)) * y)
    images = (127 + 120 * waves).astype(np.uint8)[..., None]
    references = block_means(images[:100])
    assert is_publishable(quality_of(images[100:200], 100, references))
    assert not is_publishable(quality_of(images[100:101].repeat(100, 0)[:40], 100, references))
    assert not is_publishable(quality_of(rng.permuted(images, axis=1)[:100], 100, references))
    kept = distinct(np.concatenate([images[:5], images[:8]]), set(pixel_digests(images[2:3])))
    assert len(kept) == 7
