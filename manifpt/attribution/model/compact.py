"""A compact network for maps, whose first layers keep the full resolution.

Its first convolutions keep the full resolution, as networks for steganalysis do: the trace of a
generator is a texture of single pixels, which an early stride or pooling averages away (Boroumand,
Chen & Fridrich, "Deep residual network for steganalysis of digital images", IEEE TIFS 2019, section
II). Strided convolutions follow, which widen as they reduce: on images of 28 pixels the network
learns in less than half of the steps that one without any reduction takes.
"""

from torch import nn

COMPACT = "compact"
# Channels and stride of each convolution, 0.3 million weights in all.
LAYERS = ((32, 1), (32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1))


def compact_network(channels: int, classes: int) -> nn.Sequential:
    """Return the network, B x channels x H x W -> B x classes, for maps of any size."""
    layers: list[nn.Module] = []
    for width, stride in LAYERS:
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
