"""Spaces, made from their name and options, or from their card in a manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from manifpt.baselines import BASELINES, Baseline
from manifpt.errors import ManifptError
from manifpt.outputs.formats import SpaceCard
from manifpt.spaces.frequency import Frequency, rounding_noise
from manifpt.spaces.pixels import Pixels
from manifpt.spaces.residual import Residual

SPACES = ("rgb", "freq", "residual", "sl", "ssl", "image", *BASELINES)
LEARNED = ("sl", "ssl")
LARGEST = 64


if TYPE_CHECKING:
    from manifpt.spaces.learned import Learned


class Space(Protocol):
    """An embedding space."""

    @property
    def name(self) -> str:
        """The name, one of SPACES."""

    @property
    def size(self) -> int:
        """The side of the square images that it takes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one vector."""

    @property
    def tolerance(self) -> float:
        """The largest difference of two embeddings of an image, relative to the largest number."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Map N x size x size x 3 uint8 images to N x shape float32, each image by itself."""

    def card(self) -> SpaceCard:
        """Return all settings that decide the vectors, as JSON values."""


@dataclass(frozen=True)
class SpaceSettings:
    """The user's options of spaces: ``eps`` and ``log`` of freq, the rest of learned ones.

    Weights are a file, a folder of pretrain_embedding, or None for torchvision's own download;
    ``hub`` for that of timm, ``hub:TAG`` for that of open_clip.
    """

    eps: float | None = None
    log: bool = True
    sl_network: str = "resnet50"
    sl_weights: str | None = None
    ssl_network: str = "resnet50"
    ssl_weights: str | None = None
    layer: str | None = None
    pooled: bool = True
    layer_summary: str = "mean"
    network_size: int | None = None
    precision: str = "float32"


def make_space(name: str, size: int, options: SpaceSettings = SpaceSettings()) -> Space:
    """Return a space by name, for images of a size."""
    if name in {"rgb", "image"}:
        return Pixels(size, name)
    if name == "freq":
        eps = rounding_noise(size) if options.eps is None else options.eps
        return Frequency(size, eps, options.log)
    if name == "residual":
        return Residual(size)
    if name in BASELINES:
        return Baseline(size, name)
    if name in LEARNED:
        return _learned(name, size, options)
    raise ManifptError(f"--space {name}: unknown; choose one of {', '.join(SPACES)}")


def _learned(name: str, size: int, options: SpaceSettings) -> "Learned":
    from manifpt.nets import encoders
    from manifpt.nets.backbone import check_backbone
    from manifpt.spaces import weights
    from manifpt.spaces.learned import NETWORK_SIZE, Learned

    backbone, given, option = options.sl_network, options.sl_weights, "--sl-weights"
    if name == "ssl":
        backbone, given, option = options.ssl_network, options.ssl_weights, "--ssl-weights"
        if given is None:
            raise ManifptError(
                f"{option}: give Barlow Twins weights, or the output of manifpt pretrain_embedding"
            )
    if options.layer_summary != "mean" and not options.pooled:
        raise ManifptError(
            f"--layer-summary {options.layer_summary}: pools a map; leave out --no-pooled"
        )
    own: Mapping[str, Any] = {}
    if encoders.library_of(backbone) is None:
        check_backbone(backbone, f"--{name}-network")
    else:
        own = encoders.preprocessing(backbone, f"--{name}-network")
    source = weights.find_weights(given, backbone, option)
    facts = {
        "backbone": backbone,
        "mean": weights.IMAGENET_MEAN,
        "std": weights.IMAGENET_STD,
        "network_size": NETWORK_SIZE,
        **own,
        **source.facts,
    }
    facts |= {key: tuple(facts[key]) for key in ("mean", "std")}
    if options.network_size is not None:
        facts["network_size"] = options.network_size
    return Learned(
        name,
        size,
        weights_sha256=source.checked_sha256(option),
        layer=options.layer,
        pooled=options.pooled,
        layer_summary=options.layer_summary,
        precision=options.precision,
        weights=source.uri,
        **facts,
    )


def space_from_card(card: SpaceCard, weights: str = "") -> Space:
    """Return the space of a card; ``weights`` is the place of a learned space's weights."""
    if card["name"] in LEARNED:
        from manifpt.spaces.learned import Learned

        kept: Any = {k: v for k, v in card.items() if k in Learned.__dataclass_fields__}
        kept |= {key: tuple(kept[key]) for key in ("mean", "std")}
        return Learned(**kept, weights=weights)
    settings: Any = {key: value for key, value in card.items() if key in ("eps", "log")}
    found = make_space(card["name"], card["size"], SpaceSettings(**settings))
    if card["name"] in BASELINES and found.card() != card:
        raise ManifptError(
            f"space {card['name']}: made by another version, whose vectors differ; make it anew"
        )
    return found


def largest_size(name: str, options: SpaceSettings) -> int:
    """Return the side beyond which images are reduced, if the user gives no size.

    It is the input size of the network for learned spaces, 64 pixels for others.
    """
    if name not in LEARNED:
        return LARGEST
    space = _learned(name, 1, options)
    return int(space.network_size / space.crop)
