"""Torchvision's classifiers by name, their stem suited to the image size, with a head or none."""

from torch import nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torchvision import models

from manifpt.errors import ManifptError

STEMS = ("auto", "full", "half", "standard")
FULL_UP_TO, HALF_UP_TO = 48, 112


def choose_stem(stem: str, size: int) -> str:
    """Return how far the stem reduces: ``full`` not at all, ``half`` by 2, ``standard`` by 4.

    Fingerprints live in the finest detail (Gragnaniello et al., ICME 2021, leave the first
    reduction out for that reason), and small images have no resolution to lose: ``auto`` keeps
    full resolution up to 48 pixels and half of it up to 112.
    """
    if stem != "auto":
        return stem
    return "full" if size <= FULL_UP_TO else "half" if size <= HALF_UP_TO else "standard"


def check_backbone(backbone: str, option: str = "--backbone") -> None:
    """Raise if torchvision has no classification model of that name."""
    known = models.list_models(module=models)
    if backbone not in known:
        near = ", ".join(sorted(n for n in known if n.startswith("resnet")))
        raise ManifptError(f"{option} {backbone}: not a torchvision classifier; try one of {near}")


def build_backbone(
    backbone: str, classes: int | None, channels: int = 3, stem: str = "standard"
) -> nn.Module:
    """Return an untrained torchvision classifier with the stem and the number of classes given.

    With ``classes`` None its last layer is left out: it returns features, B x d.
    """
    check_backbone(backbone)
    network: nn.Module = models.get_model(backbone, weights=None, num_classes=classes or 1)
    if isinstance(network, models.ResNet):
        width = network.conv1.out_channels
        if stem != "standard":
            stride = 1 if stem == "full" else 2
            network.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
            network.maxpool = nn.Identity()  # type: ignore[assignment]
        elif channels != 3:
            network.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    return network if classes else without_head(network)


def last_layer(network: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and the module of a classifier's last linear layer."""
    found = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not found:
        raise ManifptError("a network without a linear layer has no head; take another backbone")
    return found[-1]


def without_head(network: nn.Module) -> nn.Module:
    """Replace a classifier's last linear layer by the identity; return the network."""
    path, _ = last_layer(network)
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network


def folded(network: nn.Module) -> nn.Module:
    """Return a network for inference, with batch norms folded into the convolutions before them.

    It is the same function but for rounding, and faster: on CPUs ResNets by 1.1, MobileNetV2 by
    1.7. What torch.fx can't trace stays as it is.
    """
    network = network.eval()
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    try:
        traced = symbolic_trace(network)  # a copy of torchvision's feature extractor would train
    except TraceError:
        return network
    return fuse(traced.eval())
