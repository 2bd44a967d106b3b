import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mobilenet
from torchvision import models

from manifpt.errors import DamageError, ManifptError
from manifpt.nets.backbone import build_backbone, folded, for_training
from manifpt.spaces import SpaceSettings, make_space, space_from_card
from manifpt.spaces import learned as learned_spaces
from manifpt.throughput.photographs import crops, photographs

IMAGES = np.random.default_rng(0).integers(0, 256, (33, 28, 28, 3), dtype=np.uint8)


def sl(size: int = 28, **options) -> learned_spaces.Learned:
    given = {"sl_network": "mobilenet_v2", "sl_weights": mobilenet(), "network_size": 64}
    return make_space("sl", size, SpaceSettings(**given | options))


SPACES = {
    "rgb": lambda: make_space("rgb", 28),
    "freq": lambda: make_space("freq", 28),
    "residual": lambda: make_space("residual", 28),
    "sl": sl,
    "sl layer": lambda: sl(layer="features.6", pooled=False),
}


@pytest.mark.parametrize("name", SPACES)
def test_vectors_do_not_depend_on_the_batch(name):
    space = SPACES[name]()
    whole = space.embed(IMAGES)
    assert whole.shape == (33, *space.shape)
    assert whole.dtype == np.float32
    for size in (1, 7, 16, 32):
        parts = [space.embed(IMAGES[i : i + size]) for i in range(0, 33, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    again = space_from_card(space.card(), getattr(space, "weights", ""))
    assert np.array_equal(again.embed(IMAGES), whole)
    assert again.card() == space.card()


def test_the_spectrum_of_a_constant_and_of_a_wave():
    constant = np.full((1, 16, 16, 3), 255, np.uint8)
    space = make_space("freq", 16, SpaceSettings(log=False))
    spectrum = space.embed(constant)[0, 0]
    assert spectrum[8, 8] == pytest.approx(256)
    assert np.delete(spectrum.ravel(), 8 * 16 + 8).max() < 1e-9
    wave = np.zeros((1, 16, 16, 3), np.uint8)
    wave[:, :, ::2] = 255
    spectrum = space.embed(wave)[0, 0]
    assert spectrum[8, 0] == pytest.approx(128)  # the highest horizontal frequency


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    network = models.mobilenet_v2()
    network.load_state_dict(torch.load(mobilenet(), weights_only=True))
    return network.eval()


@torch.inference_mode()
def test_sl_is_torchvisions_own_network_without_its_last_layer(reference):
    """Images of the network's own size are normalised by ImageNet's statistics and nothing else."""
    images = np.random.default_rng(1).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / std[:, None, None]
    expected = reference.features(x).mean((2, 3)).numpy()
    np.testing.assert_allclose(sl(224, network_size=None).embed(images), expected, atol=1e-5)


def test_small_images_are_enlarged_by_a_bicubic_filter_as_pillow_does():
    from PIL import Image

    space = sl(28, network_size=None, pooled=False)
    assert space.network_size == 224
    images = 80 + IMAGES[:2] // 3  # Pillow clips in between, where values exceed a byte
    seen = learned_spaces.Encoder(space, torch.nn.Identity(), "cpu", 16)(images)
    pixels = seen * np.array(space.std)[:, None, None] + np.array(space.mean)[:, None, None]
    for image, found in zip(images, pixels, strict=True):
        large = Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(found.transpose(1, 2, 0) * 255, np.asarray(large), atol=1.5)


@torch.inference_mode()
def test_an_inner_layer_is_a_map_or_its_mean(reference):
    image = np.random.default_rng(2).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    as_map, pooled = (sl(64, layer="features.6", pooled=p) for p in (False, True))
    assert as_map.shape == (32, 8, 8)
    assert pooled.shape == (32,)
    np.testing.assert_allclose(
        as_map.embed(image).mean((2, 3)), pooled.embed(image), rtol=1e-4, atol=1e-5
    )


def saved(folder: Path, tensors: object) -> str:
    torch.save(tensors, folder / "w.pt")
    return str(folder / "w.pt")


@pytest.mark.parametrize("wrap", ["plain", "module.", "backbone.", "checkpoint"])
def test_published_checkpoints_load_by_whatever_prefix(tmp_path, wrap):
    torch.manual_seed(0)
    network = models.resnet18(num_classes=7)
    state = network.state_dict()
    prefix = wrap if wrap.endswith(".") else ""
    named = {prefix + name: value for name, value in state.items()}
    named["projector.0.weight"] = torch.zeros(3)
    tensors = {"epoch": 3, "model": named} if wrap == "checkpoint" else named
    space = make_space(
        "ssl", 32, SpaceSettings(ssl_network="resnet18", ssl_weights=saved(tmp_path, tensors),
                           network_size=32))  # fmt: skip
    trunk = build_backbone("resnet18", None).eval()
    trunk.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    images = np.zeros((1, 32, 32, 3), np.uint8)
    black = (torch.zeros(1, 3, 32, 32) - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    with torch.inference_mode():
        np.testing.assert_allclose(space.embed(images), trunk(black).numpy(), atol=1e-5)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sl_weights": "/no/such.pth"}, "--sl-weights /no/such.pth: no such file"),
        (
            {"sl_weights": None},
            "give a local file, or an s3://, gs:// or az:// URI, with --sl-weights",
        ),
        ({"sl_network": "resnet18"}, "not the weights of resnet18"),
        ({"sl_network": "resnet_18"}, "not a torchvision classifier"),
        ({"layer": "layer9"}, "no such layer; it has features.0"),
    ],
)
def test_what_does_not_fit_is_one_line(options, words, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ManifptError, match=words) as error:
        _ = sl(**options).shape
    assert "\n" not in str(error.value)


def test_weights_of_a_deeper_network_and_code_in_a_file_are_refused(tmp_path):
    deeper = saved(tmp_path, models.resnet34().state_dict())
    with pytest.raises(ManifptError, match="do not fit"):
        _ = sl(sl_network="resnet18", sl_weights=deeper).shape
    with pytest.raises(ManifptError, match="tensors alone"):
        _ = sl(sl_weights=saved(tmp_path, {"a": Evil()})).shape
    assert not Path("evil").exists()


def test_weights_that_changed_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(Path(mobilenet()).read_bytes())
    space = sl(sl_weights=str(path), network_size=80)
    assert space.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DamageError, match="hash"):
        _ = space.shape


class Greedy(torch.nn.Module):
    """Takes memory as a network on a GPU does: batches of more than ``most`` do not fit."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError
        return x.mean((2, 3))


def test_a_batch_that_does_not_fit_is_halved_and_remembered(monkeypatch):
    monkeypatch.setattr(learned_spaces, "CPU_STEP", 1)
    greedy = Greedy(5)
    encoder = learned_spaces.Encoder(sl(), greedy, "cpu", 32)
    found = encoder(IMAGES)
    assert (encoder.batch, max(greedy.seen)) == (4, 32)
    np.testing.assert_allclose(found, learned_spaces.Encoder(sl(), Greedy(99), "cpu", 16)(IMAGES))
    greedy.seen.clear()
    encoder(IMAGES)
    assert max(greedy.seen) == 4
    with pytest.raises(ManifptError, match="--network-size"):
        learned_spaces.Encoder(sl(), Greedy(0), "cpu", 8)


def test_half_precision_moves_features_by_little_of_their_distance_to_the_nearest_real():
    photos = crops(photographs(()), 28, 60, 0, seen=True)
    exact = sl().embed(photos)
    apart = np.linalg.norm(exact[:, None] - exact[None], axis=-1)
    nearest = np.where(apart > 0, apart, np.inf).min(1)
    moved = {
        precision: np.median(np.linalg.norm(found - exact, axis=1) / nearest)
        for precision in ("float16", "bfloat16")
        for found in [replace(sl(), precision=precision).embed(photos)]
    }
    print(moved)
    assert 0 < moved["float16"] < 0.03
    assert moved["bfloat16"] > 3 * moved["float16"]


def test_what_exceeds_float16_is_embedded_in_float32():
    class Large(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(x.abs() * 1000, torch.full((4, 3, 1, 1), 100.0))

    half = replace(sl(), precision="float16")
    bright = np.stack([np.full((28, 28, 3), 255, np.uint8), np.full((28, 28, 3), 124, np.uint8)])
    found = learned_spaces.Encoder(half, Large(), "cpu", 16)(bright)
    exact = learned_spaces.Encoder(sl(), Large(), "cpu", 16)(bright)
    assert exact[0].max() > 65_504 > exact[1].max()
    assert np.array_equal(found[0], exact[0])
    assert 0 < np.abs(found[1] - exact[1]).max() < 1e-2 * exact[1].max()


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_vectors_but_for_rounding(monkeypatch):
    plain = sl(network_size=32)
    whole = plain.embed(IMAGES)
    compiled = learned_spaces.compiled(plain)
    assert compiled != plain
    assert np.abs(compiled.embed(IMAGES) - whole).max() <= plain.tolerance * np.abs(whole).max()
    torch.compiler.reset()
    learned_spaces.loaded_encoder.cache_clear()
    monkeypatch.setenv("CXX", "/no/such/compiler")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/such/compiler",))
    with pytest.raises(ManifptError, match="--compile"), torch._inductor.utils.fresh_cache():
        learned_spaces.compiled(sl(network_size=48)).embed(IMAGES)


def test_ssl_needs_weights_and_unknown_spaces_name_the_choice():
    with pytest.raises(ManifptError, match="pretrain_embedding"):
        make_space("ssl", 28)
    with pytest.raises(ManifptError, match="rgb, freq"):
        make_space("clip", 8)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "densenet121", "convnext_tiny"])
def test_folding_changes_nothing_but_the_speed(backbone):
    torch.manual_seed(0)
    network = build_backbone(backbone, None).eval()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        torch.nn.init.normal_(norm.running_mean, std=0.1)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected, after = network(images), folded(network)
        found = after(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    left = [m for m in after.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(left) < len(norms) or not norms


@pytest.mark.parametrize("size", [16, 28, 48, 64])
def test_training_of_small_images_has_the_gradients_of_plain_convolutions(size):
    torch.manual_seed(0)
    network = build_backbone("resnet18", None).double()
    same = for_training(build_backbone("resnet18", None)).double()
    same.load_state_dict(network.state_dict())
    images = torch.rand(3, 3, size, size, dtype=torch.float64)
    expected, found = network(images), same(images)
    assert torch.allclose(found, expected)
    for features in (expected, found):
        features.square().sum().backward()
    for one, other in zip(network.parameters(), same.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-6, atol=1e-9 * one.grad.abs().max())


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_convolutions_to_one_pixel_are_the_same_function(stride, padding):
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(2, 4, 3, stride, padding).double()
    shapes = [(3, 3), (3, 4), (5, 3), (7, 7), *([(1, 1), (2, 1)] if padding else [])]
    maps = [torch.rand(2, 2, *shape, dtype=torch.float64) for shape in shapes]
    expected = [plain(x) for x in maps]
    learning = for_training(plain)
    for x, made in zip(maps, expected, strict=True):
        assert torch.allclose(learning(x), made, rtol=1e-12)
        assert learning(x).shape == made.shape
