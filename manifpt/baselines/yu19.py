"""The attribution network of Yu et al., a backbone for maps.

Yu, Davis and Fritz, "Attributing fake images to GANs: learning and analyzing GAN fingerprints",
ICCV 2019: 3 x 3 convolutions with leaky ReLU and average pooling, down to 4 x 4 places, and dense
layers, as in the discriminator of a progressive GAN.

Deviations: the paper's images have 128 pixels and up to 512 channels. Here the number of levels
follows from the size of the maps, a first level has 32 channels, and none more than 256. Weights
start by He's rule, which stands for the scaling of weights at run time of progressive GANs.
"""

from torch import nn

YU19 = "yu19"
FIRST, MOST = 32, 256
PLACES = 4
SLOPE = 0.2


def yu19_network(channels: int, classes: int, size: int) -> nn.Sequential:
    """Return the network, B x channels x H x W -> B x classes, for maps of about ``size``, >= 8."""
    width = FIRST
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
    while size >= 2 * PLACES:
        wider = min(2 * width, MOST)
        for given, made in ((width, width), (width, wider)):
            layers += [nn.Conv2d(given, made, 3, padding=1), nn.LeakyReLU(SLOPE)]
        layers.append(nn.AvgPool2d(2))
        width, size = wider, size // 2
    layers += [nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
    layers += [nn.AdaptiveAvgPool2d(PLACES), nn.Flatten()]
    layers += [nn.Linear(PLACES**2 * width, width), nn.LeakyReLU(SLOPE)]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Linear(width, classes))
