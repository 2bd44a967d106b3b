"""Encoders of timm and open_clip as spaces, with random weights, beside the library itself."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from safetensors.torch import save_file

from manifpt.errors import DamageError, ManifptError
from manifpt.spaces import SpaceSettings, make_space, space_from_card

timm = pytest.importorskip("timm")
open_clip = pytest.importorskip("open_clip")
SMALL = "timm:test_resnet"
SEQUENCE = "timm:test_vit"


def state(network, seed=0):
    """Random weights, and running statistics as of a trained network."""
    torch.manual_seed(seed)
    tensors = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
    return {
        k: torch.rand_like(v) + 0.5 if k.endswith("running_var") else v for k, v in tensors.items()
    }


def saved(path, network):
    tensors = state(network)
    network.load_state_dict(tensors)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)
    return str(path)


def images(count, size):
    return np.stack([draw("stripes", n, size) for n in range(count)])


def make(network, weights, size=32, **options):
    return make_space("sl", size, SpaceSettings(sl_network=network, sl_weights=weights, **options))


def whole(backbone):
    torch.manual_seed(1)
    return timm.create_model(backbone.partition(":")[2], num_classes=10).eval()


@pytest.mark.parametrize(("backbone", "ending"), [(SMALL, "pt"), (SEQUENCE, "safetensors")])
def test_an_encoder_of_timm_is_the_librarys_own_with_its_transforms(tmp_path, backbone, ending):
    network = whole(backbone)
    path = saved(tmp_path / f"w.{ending}", network)
    space = make(backbone, path, size=200)
    config = timm.data.resolve_data_config({}, model=network)
    assert (space.network_size, space.mean) == (config["input_size"][-1], config["mean"])
    photos = images(3, 200)
    found = space.embed(photos)
    transform = timm.data.create_transform(**config)
    batch = torch.stack([transform(Image.fromarray(photo)) for photo in photos])
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(batch), pre_logits=True).numpy()
    assert found.shape == expected.shape == (3, *space.shape)
    # Pillow rounds the resized image to whole grey levels, torch does not.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    again = space_from_card(json.loads(json.dumps(space.card())), path)
    assert again == space
    np.testing.assert_array_equal(again.embed(photos[1:2])[0], found[1])


def test_the_card_has_the_preprocessing_of_the_library(tmp_path):
    card = make(SMALL, saved(tmp_path / "w.pt", whole(SMALL))).card()
    config = timm.get_pretrained_cfg("test_resnet")
    assert card["backbone"] == SMALL
    assert (card["resize"], card["crop"]) == (config.interpolation, config.crop_pct)
    assert card["network_size"] == config.input_size[-1]


@pytest.mark.parametrize(("how", "count"), [("mean", 1), ("deviation", 2), ("gram", None)])
def test_summaries_of_an_inner_layer(tmp_path, how, count):
    network = whole(SMALL)
    path = saved(tmp_path / "w.pt", network)
    small = {"network_size": 64, "layer": "layer2"}
    space = make(SMALL, path, 64, **small, layer_summary=how)
    as_map = make(SMALL, path, 64, **small, pooled=False).embed(images(2, 64))
    found, channels = space.embed(images(2, 64)), as_map.shape[1]
    places = as_map.reshape(2, channels, -1).astype(np.float64)
    if how == "gram":
        products = places @ places.transpose(0, 2, 1) / places.shape[2]
        expected = products[:, *np.triu_indices(channels)]
    else:
        expected = np.concatenate([places.mean(2), places.std(2)][:count], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert space_from_card(space.card(), path) == space


def test_tokens_of_a_sequence_are_summarised_too(tmp_path):
    path = saved(tmp_path / "w.pt", whole(SEQUENCE))
    inner = {"layer": "blocks.1", "layer_summary": "deviation"}
    space = make(SEQUENCE, path, network_size=96, **inner)  # positions are interpolated
    width = whole(SEQUENCE).embed_dim
    assert space.embed(images(2, 32)).shape == (2, 2 * width)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A CLIP of a few layers, by a configuration as the library's own."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    path = tmp_path_factory.mktemp("clip") / "manifpt-tiny.json"
    path.write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    return "open_clip:manifpt-tiny"


def test_an_encoder_of_open_clip_takes_the_weights_of_the_whole_model(tmp_path, tiny_clip):
    network = open_clip.create_model("manifpt-tiny").eval()
    space = make(tiny_clip, saved(tmp_path / "w.safetensors", network), size=48)
    photos = images(3, 48)
    transform = open_clip.image_transform(32, is_train=False, interpolation="bicubic")
    batch = torch.stack([transform(Image.fromarray(photo)) for photo in photos])
    with torch.inference_mode():
        expected = network.encode_image(batch).numpy()
    found = space.embed(photos)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert space.shape == (24,)
    assert space.mean == open_clip.OPENAI_DATASET_MEAN


def test_weights_that_do_not_fit_or_would_run_code_are_refused(tmp_path, tiny_clip, monkeypatch):
    path = saved(tmp_path / "w.pt", whole(SMALL))
    broken, hostile = tmp_path / "b.safetensors", tmp_path / "h.pt"
    broken.write_bytes(b"\xff" * 64)
    torch.save({"x": SpaceSettings()}, hostile)
    for network, weights, options, kind, said in [
        (SMALL, None, {}, ManifptError, "give the file of timm:test_resnet's weights"),
        ("timm:no_such", path, {}, ManifptError, "timm has no such network; try one of"),
        ("open_clip:none", path, {}, ManifptError, "open_clip has no such network; try one"),
        ("timm:test_efficientnet", path, {}, ManifptError, "not the weights of timm:test_eff"),
        (SMALL, str(broken), {}, DamageError, "no file of safetensors"),
        (SMALL, str(hostile), {}, DamageError, "not a PyTorch file of tensors alone"),
        (SMALL, path, {"layer": "layer9"}, ManifptError, "no such layer; it has .*layer1"),
        (SMALL, path, {"layer_summary": "gram"}, ManifptError, "name an inner --layer"),
        (tiny_clip, path, {"network_size": 64}, ManifptError, "takes 32 pixels alone"),
    ]:
        with pytest.raises(kind, match=said):
            _ = make(network, weights, **options).shape
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ManifptError, match=r"pip install 'manifpt\[encoders\]'"):
        make(SMALL, path)


def test_a_hub_out_of_reach_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ManifptError, match=r"--sl-weights hub: .* could not be downl") as e:
        make("timm:test_resnet.r160_in1k", "hub")
    assert "\n" not in str(e.value)
