"""Torchvision's classifiers by name, with a stem for the image size, with or without last layer.

Torchvision is imported only when a network is built: it imports PyTorch's compiler, which takes as
long as PyTorch itself, and most processes need no network.
"""

from typing import TypeVar, cast

from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse
from torch.fx.proxy import TraceError
from torch.nn.functional import linear

from manifpt.errors import ManifptError

STEMS = ("auto", "full", "half", "standard")
FULL_UP_TO, HALF_UP_TO = 48, 112

Network = TypeVar("Network", bound=nn.Module)
Pair = tuple[int, int]


def choose_stem(stem: str, size: int) -> str:
    """Return the reduction of the stem: ``full`` is none, ``half`` by 2, ``standard`` by 4.

    Fingerprints live in the finest detail (Gragnaniello et al., ICME 2021, leave the first
    reduction out for that reason), and small images have no resolution to lose: ``auto`` keeps
    full resolution up to 48 pixels and half of it up to 112.
    """
    if stem != "auto":
        return stem
    return "full" if size <= FULL_UP_TO else "half" if size <= HALF_UP_TO else "standard"


def check_backbone(backbone: str, option: str = "--backbone") -> None:
    """Raise if torchvision has no classification model of that name."""
    from torchvision import models

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
    from torchvision import models

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


class _TrainedConv2d(nn.Conv2d):
    """A convolution that uses a matrix product where its output is one pixel a channel.

    There most taps meet only padding, and oneDNN (torch 2.14, AVX2) takes 30 times as long for the
    gradient as for the function itself: a ResNet18 of 28 px images trains twice as fast without it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return B x O x H' x W' for B x C x H x W, as ``nn.Conv2d`` does."""
        taps = []
        for n, kernel, pad, stride in zip(
            x.shape[2:], self.kernel_size, cast("Pair", self.padding), self.stride, strict=True
        ):
            if n + 2 * pad - kernel >= stride:
                return super().forward(x)
            taps.append(slice(pad, min(kernel, pad + n)))
        met = self.weight[:, :, taps[0], taps[1]]
        meeting = x[:, :, : met.shape[2], : met.shape[3]]
        return linear(meeting.flatten(1), met.flatten(1), self.bias)[:, :, None, None]


def for_training(network: Network) -> Network:
    """Make a network's convolutions train faster on small images; its names stay the same."""
    for module in network.modules():
        plain = type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros"
        if plain and module.dilation == (1, 1) and not isinstance(module.padding, str):
            module.__class__ = _TrainedConv2d
    return network


def folded(network: nn.Module) -> nn.Module:
    """Return a network for inference, with batch norms folded into the convolutions before them.

    It is the same function except for rounding, and faster: on CPUs ResNets by 1.1, MobileNetV2 by
    1.7. A network that torch.fx can't trace stays as it is.
    """
    network = network.eval()
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    try:
        traced = symbolic_trace(network)  # a copy of torchvision's feature extractor would train
    except TraceError:
        return network
    return fuse(traced.eval())
