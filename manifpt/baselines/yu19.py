"""The attribution network of Yu et al., a backbone for maps.

Yu, Davis and Fritz, "Attributing fake images to GANs: learning and analyzing GAN fingerprints",
ICCV 2019: 3 x 3 convolutions with leaky ReLU and average pooling, down to 4 x 4 places, and dense
layers, as in the discriminator of a progressive GAN.

The authors' code (github.com/ningyu1991/GANFingerprints, ``C_patch``) is followed in this: two
convolutions a level, of which the second doubles the channels, borders that are reflected, means
over 2 x 2, one convolution at 4 x 4, and two dense layers.

Deviations: the code's images have 128 pixels, and its levels 16 to 512 channels. Here the number of
levels follows from the size of the maps, a first level has 32 channels, and none more than 256,
since a network of 512 takes four times as long on CPUs. Weights start by He's rule, which stands
for the scaling of weights at run time of progressive GANs. The code trains by Adam at a rate of
0.0015 with images mirrored at random; here a training is that of all networks.
"""

from torch import nn

YU19 = "yu19"
FIRST, MOST = 32, 256
PLACES = 4
SLOPE = 0.2


def yu19_network(channels: int, classes: int, size: int) -> nn.Sequential:
    """Return the network, B x channels x H x W -> B x classes, for maps of about ``size``, >= 8."""
    width = FIRST
    layers: list[nn.Module] = []

    def convolve(given: int, made: int) -> None:
        convolution = nn.Conv2d(given, made, 3, padding=1, padding_mode="reflect")
        layers.extend((convolution, nn.LeakyReLU(SLOPE)))

    while size >= 2 * PLACES:
        wider = min(2 * width, MOST)
        convolve(channels, width)
        convolve(width, wider)
        layers.append(nn.AvgPool2d(2))
        channels = width = wider
        size //= 2
    convolve(width, width)
    layers += [nn.AdaptiveAvgPool2d(PLACES), nn.Flatten()]
    layers += [nn.Linear(PLACES**2 * width, width), nn.LeakyReLU(SLOPE)]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Linear(width, classes))
