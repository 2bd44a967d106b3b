"""Training on patches whose features are drawn together by source: ``--augment patches``.

Yang, Huang, Cao, Li and Li, "Deepfake network architecture attribution", AAAI 2022 (DNA-Det): what
an architecture leaves is alike all over an image, so random patches are classified, and a
supervised contrastive loss (Khosla et al., "Supervised contrastive learning", NeurIPS 2020) draws
together the features of all patches of one class. Whole images are classified later.

The authors' code (github.com/ICTMCG/DNA-Det) is followed in this: both losses are of patches, the
contrast is between all patches of a batch, and its temperature is 0.07.

Deviations: the code enlarges images of 128 pixels to 512 and takes 16 patches of 64; here 4 patches
of half the side are taken of maps as they are, which have as many pixels as a whole image, since 16
enlarged ones take CPUs hundreds of times as long. The losses are added, where the code learns their
weights, and features are compared as they are, where the code has a projection of two layers. The
code trains a network of its own first to name 170 degradations of reals; here any network for maps
learns from the classes alone, which are architectures if sources are named by architecture.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

PATCHES = "patches"
COUNT = 4
LEAST_SIDE = 8
TEMPERATURE = 0.07


def random_patches(artifacts: Sequence[Tensor], movable: Sequence[bool]) -> list[Tensor]:
    """Return COUNT patches of each of B images in each space, COUNT B rows, patch by patch.

    Patches of an image lie at the same relative places in all spaces. Vectors, and maps that are
    not ``movable``, such as spectra, are repeated whole.
    """
    rows = COUNT * len(artifacts[0])
    images = torch.arange(len(artifacts[0])).repeat(COUNT)
    places = torch.rand(rows, 2)
    found = []
    for values, moves in zip(artifacts, movable, strict=True):
        if values.ndim != 4 or not moves:
            found.append(values.repeat(COUNT, *(1 for _ in values.shape[1:])))
            continue
        sides = [min(size, max(LEAST_SIDE, -(-size // 2))) for size in values.shape[2:]]
        windows = values.unfold(2, sides[0], 1).unfold(3, sides[1], 1)
        tops, lefts = ((places[:, axis] * windows.shape[2 + axis]).long() for axis in (0, 1))
        # N x C x h x w; the indices stand apart, so their axis comes first.
        found.append(windows[images, :, tops, lefts])
    return found


def supervised_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of B x d features: each row is to find those of its class among all others.

    That is the mean over rows and their partners of minus the log-probability of the partner, of a
    softmax of cosines over the temperature. Each label occurs twice at least.
    """
    rows = normalize(features.float(), dim=1)
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    cosines = (rows @ rows.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    scores = cosines.log_softmax(1).masked_fill(itself, 0.0)
    partners = (labels[:, None] == labels) & ~itself
    return -((scores * partners).sum(1) / partners.sum(1)).mean()
