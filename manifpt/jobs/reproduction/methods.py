"""The methods of the tables, a row each: the input of a method, and its training.

Sources of the published methods stand at the heads of their files in manifpt/baselines. Two have no
file. Wang20 (Wang et al., "CNN-generated images are surprisingly easy to spot... for now", CVPR
2020) is a network on images that are degraded and mirrored at random; its ResNet-50 has learned
ImageNet, and here it is the network of all rows, untrained. Marra18 (Marra et al., "Detection of
GAN-generated fake images over social networks", IEEE MIPR 2018) is a network on images as they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Kinds of artifacts, each a folder of a study.
PLAIN, DEGRADED, FEATURES = "plain", "degraded", "features"
NEAREST, TANGENT, DENOISED = "nearest", "tangent", "denoiser"

PUBLISHED = "published before the paper"
LATER = "published later, or ours without a manifold"
PAPER = "ManiFPT as published"
MANIFOLD = "artifacts of a manifold"
TOGETHER = "several heads"

COMPACT = ("--backbone", "compact")


class ArtifactPlace(NamedTuple):
    """The place of artifacts: their kind and their space."""

    kind: str
    space: str


@dataclass(frozen=True)
class ComparedMethod:
    """One row: a classifier of one input, or several such classifiers that are fused.

    ``later`` is added to the seed. A classifier in ``closed`` form depends on no seed.
    """

    title: str
    group: str
    place: ArtifactPlace | None = None
    flags: tuple[str, ...] = ()
    members: tuple["ComparedMethod", ...] = ()
    closed: bool = False
    later: int = 0

    @property
    def networks(self) -> int:
        """The number of networks that gradients train."""
        return sum(m.networks for m in self.members) if self.members else int(not self.closed)

    @property
    def places(self) -> list[ArtifactPlace]:
        """The places that its heads read, each once."""
        own = [self.place] if self.place else []
        return list(dict.fromkeys([*own, *(p for m in self.members for p in m.places)]))

    @property
    def name(self) -> str:
        """The title as a name of a folder: ``ManiFPT rgb`` is ``manifpt-rgb``."""
        return re.sub("-+", "-", re.sub(r"[^\w+@]", "-", self.title.lower())).replace("-+-", "+")


def vector(
    title: str, group: str, kind: str, space: str, classifier: str = "lda"
) -> ComparedMethod:
    """Return a classifier of vectors without gradients; linear discriminants by default."""
    flags = ("--vectors", classifier)
    return ComparedMethod(title, group, ArtifactPlace(kind, space), flags, closed=True)


def network(
    title: str, group: str, kind: str, space: str, flags: Sequence[str] = COMPACT, later: int = 0
) -> ComparedMethod:
    """Return a network on maps."""
    return ComparedMethod(title, group, ArtifactPlace(kind, space), tuple(flags), later=later)


def fused(title: str, *members: ComparedMethod) -> ComparedMethod:
    """Return the late fusion of some methods, with weights by validation."""
    return ComparedMethod(title, TOGETHER, members=members, closed=all(m.closed for m in members))


def methods(paper: Sequence[str], learned: Sequence[str] = ()) -> list[ComparedMethod]:
    """Return the rows in their order.

    ``paper`` are flags of the paper's own network; ``learned`` are spaces of encoders, such as sl.
    """
    image = network("image", LATER, PLAIN, "image")
    again = network("image@1", LATER, PLAIN, "image", later=1)
    highpass = network("high-pass", LATER, PLAIN, "image", (*COMPACT, "--highpass", "only"))
    statistics = vector("residual statistics", LATER, PLAIN, "residual")
    denoiser = network("denoiser", MANIFOLD, DENOISED, "rgb")
    tangent = network("rgb, tangent plane", MANIFOLD, TANGENT, "rgb")
    three = (image, highpass, statistics)
    return [
        vector("McCloskey18", PUBLISHED, PLAIN, "mccloskey18"),
        network("Nataraj19", PUBLISHED, PLAIN, "nataraj19"),
        vector("Durall20", PUBLISHED, PLAIN, "durall20"),
        vector("Dzanic20", PUBLISHED, PLAIN, "dzanic20", "knn"),
        network("Wang20", PUBLISHED, DEGRADED, "image", (*COMPACT, "--augment", "mirror")),
        network("Marra18", PUBLISHED, PLAIN, "image", (*COMPACT, "--augment", "none")),
        vector("Marra19", PUBLISHED, PLAIN, "marra19", "correlation"),
        network("Yu19", PUBLISHED, PLAIN, "image", ("--backbone", "yu19")),
        network("DNA-Det", PUBLISHED, PLAIN, "image", (*COMPACT, "--augment", "patches")),
        image,
        highpass,
        network("NPR", LATER, PLAIN, "npr"),
        network("low bits", LATER, PLAIN, "lowbits"),
        vector("self-description", LATER, PLAIN, "selfdescription"),
        statistics,
        vector("residual statistics, neighbours", LATER, PLAIN, "residual", "knn"),
        *(vector(f"{name}, linear", LATER, FEATURES, name) for name in learned),
        *(vector(f"{name}, neighbours", LATER, FEATURES, name, "knn") for name in learned),
        network("ManiFPT rgb", PAPER, NEAREST, "rgb", paper),
        network("ManiFPT freq", PAPER, NEAREST, "freq", paper),
        *(
            ComparedMethod(
                f"ManiFPT {name}", PAPER, ArtifactPlace(NEAREST, name), ("--vectors", "mlp")
            )
            for name in learned
        ),
        tangent,
        network("freq, tangent plane", MANIFOLD, TANGENT, "freq"),
        vector("residual, tangent plane", MANIFOLD, TANGENT, "residual"),
        denoiser,
        fused("image + image@1", image, again),
        fused("image + high-pass", image, highpass),
        fused("image + rgb", image, tangent),
        fused("image + denoiser", image, denoiser),
        fused("image + residual statistics", image, statistics),
        fused("image + high-pass + residual statistics + image@1", *three, again),
        fused("image + high-pass + residual statistics + denoiser", *three, denoiser),
    ]


# Pairs at equal numbers of networks: with a manifold, and with the image again.
PAIRS = (
    ("image + rgb", "image + image@1"),
    ("image + denoiser", "image + image@1"),
    (
        "image + high-pass + residual statistics + denoiser",
        "image + high-pass + residual statistics + image@1",
    ),
)


def chosen(rows: Sequence[ComparedMethod], titles: Sequence[str]) -> list[ComparedMethod]:
    """Return the rows of those titles, or all if none is given.

    Raises ValueError for a title that no row has.
    """
    known = {row.title: row for row in rows}
    missing = [title for title in titles if title not in known]
    if missing:
        raise ValueError(f"{missing[0]}: no such row; choose from {', '.join(known)}")
    return [known[title] for title in titles] if titles else list(rows)
