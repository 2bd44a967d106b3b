import numpy as np
import pytest
import torch
from conftest import BENCHMARK

from manifpt.zoo.benchmark import split_reals, tar_of, verify
from manifpt.zoo.flow import Flow
from manifpt.zoo.training import MODELS, Recipe, fit, sample


@pytest.mark.parametrize("model", MODELS)
def test_every_family_trains_and_samples_repeatably(model):
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
    options = {"sampling_steps": 3} if model == "score" else {}
    recipe = Recipe(model, model, seed=1, steps=2, batch_size=16, options=options)
    first, curve = fit(recipe, images)
    assert all(np.isfinite(list(row.values())).all() for row in curve)
    again, _ = fit(recipe, images)
    one, two = sample(first, 5, seed=3), sample(again, 5, seed=3)
    assert one.shape == (5, 16, 16, 1)
    assert one.dtype == np.uint8
    assert np.array_equal(one, two)
    assert not np.array_equal(one, sample(first, 5, seed=4))


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


def test_the_shipped_benchmark_is_what_its_card_says():
    from manifpt.images import DecodeRule, plan, read_unit

    assert verify(str(BENCHMARK)) == []
    tables = [t for u in plan([str(BENCHMARK)]) for t in read_unit(u, DecodeRule(28))]
    hashes = [h for t in tables for h in t["pixel_sha256"].to_pylist()]
    assert len(hashes) == len(set(hashes)) == 4600 + 4 * 600
    assert sum(f.stat().st_size for f in BENCHMARK.rglob("*") if f.is_file()) < 8 * 2**20
