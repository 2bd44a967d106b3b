"""A compact network at full resolution, for the finest detail of small maps.

Convolutions of 3 x 3 pixels without any reduction before the last layer, as in networks that look
for hidden messages: what a generator leaves is a texture of single pixels, which a stride or a
pooling would average away (Boroumand, Chen & Fridrich, "Deep residual network for steganalysis of
digital images", IEEE TIFS 2019, section II).
"""

from torch import nn

COMPACT = "compact"
WIDTH, DEPTH = 32, 5


def compact_network(channels: int, classes: int) -> nn.Sequential:
    """Return the network, B x channels x H x W -> B x classes, for maps of any size."""
    layers: list[nn.Module] = []
    for given in (channels, *(WIDTH,) * (DEPTH - 1)):
        layers += [
            nn.Conv2d(given, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, classes))
