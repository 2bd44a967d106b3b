"""Image encoders of timm and open_clip by name, ``timm:NAME`` and ``open_clip:NAME``.

They are built without weights, and nothing is downloaded unless the user asks for their hub. Images
are resized and normalised as the library prescribes.
"""

import importlib
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from manifpt.errors import ManifptError

PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch"}


def library_of(backbone: str) -> tuple[str, str] | None:
    """Return the library and the name in it; None for a network of torchvision."""
    library, mark, name = backbone.partition(":")
    return (library, name) if mark and library in PACKAGES else None


def _library(backbone: str) -> tuple[Any, str]:
    """Return the module of a library, and the name in it."""
    found = library_of(backbone)
    assert found is not None
    library, name = found
    try:
        return importlib.import_module(library), name
    except ImportError:
        raise ManifptError(
            f"{backbone}: needs {PACKAGES[library]}; pip install 'manifpt[encoders]'"
        ) from None


class Preprocessing(TypedDict):
    """The input of a network: its side, the filter of resizing, mean and deviation of channels.

    ``crop`` is the share of the side that is kept.
    """

    network_size: int
    resize: str
    crop: NotRequired[float]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def preprocessing(backbone: str, option: str) -> Preprocessing:
    """Return the preprocessing that a network's library prescribes."""
    module, name = _library(backbone)
    known = module.is_model(name) if module.__name__ == "timm" else name in module.list_models()
    if not known:
        key = name.split(".")[0].lower()
        near = [n for n in module.list_models() if key[:6] in n.lower()] or module.list_models()
        raise ManifptError(
            f"{option} {backbone}: {module.__name__} has no such network; try one of "
            f"{', '.join(near[:8])}"
        )
    if module.__name__ == "timm":
        cfg = module.get_pretrained_cfg(name, allow_unregistered=False)
        return {
            "network_size": cfg.input_size[-1],
            "resize": cfg.interpolation,
            "crop": cfg.crop_pct,
            "mean": tuple(cfg.mean),
            "std": tuple(cfg.std),
        }
    # Normalisation is a property of weights, and the same for all weights of a network.
    tags = module.list_pretrained_tags_by_model(name)
    cfg = module.get_pretrained_cfg(name, tags[0]) if tags else {}
    return {
        "network_size": module.get_model_config(name)["vision_cfg"].get("image_size", 224),
        "resize": cfg.get("interpolation", "bicubic"),
        "mean": tuple(cfg.get("mean", module.OPENAI_DATASET_MEAN)),
        "std": tuple(cfg.get("std", module.OPENAI_DATASET_STD)),
    }


def build_encoder(backbone: str, size: int, hub: str | None = None) -> nn.Module:
    """Return an encoder of images, B x 3 x size x size -> B x d, without its last layer.

    It has no weights, or with ``hub`` those that the library downloads: the name of timm includes
    the tag, for open_clip ``hub`` is the tag.
    """
    module, name = _library(backbone)
    usual = preprocessing(backbone, "--sl-network")["network_size"]
    if module.__name__ == "timm":
        given = {"pretrained": hub is not None, "num_classes": 0}
        if size != usual:
            given |= {"dynamic_img_size": True}
        try:
            network: nn.Module = module.create_model(name, **given)
        except TypeError:  # a network that takes no such option; only some that need none do
            if module.get_pretrained_cfg(name).fixed_input_size:
                raise _fixed(backbone, usual) from None
            del given["dynamic_img_size"]
            network = module.create_model(name, **given)
        return network
    if size != usual:
        raise _fixed(backbone, usual)
    whole = module.create_model(
        name, pretrained=hub, load_weights=hub is not None, pretrained_text=False
    )
    visual: nn.Module = whole.visual
    return visual


def _fixed(backbone: str, size: int) -> ManifptError:
    return ManifptError(f"--network-size: {backbone} takes {size} pixels alone; leave it out")


def heads_of(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the last layers that an encoder has left out."""
    cfg = getattr(network, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


class _ReachedError(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def _stop(_module: nn.Module, _given: Any, value: Any) -> None:
    raise _ReachedError(value)


class Inner(nn.Module):
    """The output of an inner module of an encoder; the modules after it are not computed.

    Maps are B x C x h x w, sequences B x tokens x C.
    """

    def __init__(self, network: nn.Module, layer: str, backbone: str) -> None:
        super().__init__()
        names = [name for name, _ in network.named_modules() if name]
        if layer not in names:
            shown = ", ".join(name for name in names if name.count(".") < 2)[:300]
            raise ManifptError(f"--layer {layer}: {backbone} has no such layer; it has {shown}")
        self.network, self.layer, self.backbone = network, layer, backbone
        self.last = getattr(network, "output_fmt", "NCHW") == "NHWC"  # channels
        network.get_submodule(layer).register_forward_hook(_stop)

    def forward(self, images: Tensor) -> Tensor:
        """Return the layer's values for B x 3 x h x w."""
        try:
            self.network(images)
        except _ReachedError as reached:
            value = reached.value
            if isinstance(value, Tensor) and value.ndim >= 2:
                return value.permute(0, 3, 1, 2) if self.last and value.ndim == 4 else value
        raise ManifptError(f"--layer {self.layer}: gives no map in {self.backbone}; take another")


def summarised(values: Tensor, how: str) -> Tensor:
    """Return the summary of each map or sequence: B x C x h x w or B x tokens x C.

    ``mean`` has C, ``deviation`` the means and the standard deviations, 2 C, and ``gram`` the
    products of channels, averaged over places (Gatys et al., CVPR 2016), C (C + 1) / 2.
    """
    values = values.float()
    if how == "mean":
        return values.mean((2, 3)) if values.ndim == 4 else values.mean(1)
    flat = values.flatten(2) if values.ndim == 4 else values.transpose(1, 2)
    if how == "deviation":
        return torch.cat([flat.mean(2), flat.std(2, correction=0)], 1)
    products = flat @ flat.transpose(1, 2) / flat.shape[2]
    rows, columns = torch.triu_indices(flat.shape[1], flat.shape[1])
    return products[:, rows, columns]
