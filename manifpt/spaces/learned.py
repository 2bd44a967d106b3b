"""SL and SSL: features of an image in a trained network (ManiFPT, section 4).

SL is a network trained on ImageNet with labels, SSL one trained without any (Barlow Twins, Zbontar
et al., ICML 2021), both without their last layer. The paper crops images to 224 pixels and does not
say how it resizes small ones. Here images have ``size``, by the rule of all spaces; if the network
takes another size, they are resized by an antialiased bicubic filter, on its device.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.nets import encoders
from manifpt.nets.backbone import build_backbone, folded, without_head
from manifpt.nets.device import CPU_BATCH, CPU_STEP, device_and_precision, in_batches
from manifpt.outputs.formats import SpaceCard, WeightsEntry
from manifpt.spaces.weights import load_into, read_weights

NETWORK_SIZE = 224
MOST_CHANNELS = 512  # of gram, which has half their square
GPU_BATCH = 1024
# The largest difference of two embeddings of an image, on other machines or in other batches,
# relative to the largest number. bfloat16 has 8 bits: it moved features of MobileNetV2 by a tenth
# of the distance to the nearest real, float16 by a hundredth.
TOLERANCE = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 4e-1}


class LearnedCard(SpaceCard):
    """The settings of a learned space, with the hash of its weights."""

    backbone: str
    weights_sha256: str
    stem: str
    network_size: int
    layer: str | None
    pooled: bool
    precision: str
    mean: list[float]
    std: list[float]
    resize: str
    layer_summary: NotRequired[str]
    crop: NotRequired[float]


@dataclass(frozen=True)
class Learned:
    """A layer of a network, pooled to ``C`` numbers or as a map C x h x w, float32.

    ``layer`` is the name of an inner layer, None for the input of the last one. On a CPU, no bit of
    a vector depends on the batch; on GPUs, and between machines, vectors differ by rounding.
    ``layer_summary`` names the ``pooled`` numbers, see ``encoders.summarised``; ``crop`` is the
    share of a resized image's side that the network sees.
    """

    name: str
    size: int
    backbone: str
    weights_sha256: str
    stem: str = "standard"
    network_size: int = NETWORK_SIZE
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layer: str | None = None
    pooled: bool = True
    layer_summary: str = "mean"
    resize: str = "bicubic"
    crop: float = 1.0
    precision: str = "float32"
    weights: str = field(default="", compare=False)
    compiled: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one vector, d or C x h x w."""
        return loaded_encoder(self).shape

    @property
    def tolerance(self) -> float:
        """The largest difference of two embeddings of an image, relative to the largest number."""
        return TOLERANCE[self.precision]

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Map N x size x size x 3 uint8 images to N x shape float32."""
        return loaded_encoder(self)(images)

    def card(self) -> LearnedCard:
        """Return the network of the space, its weights' hash, and its preprocessing."""
        card: LearnedCard = {
            "name": self.name,
            "size": self.size,
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            "stem": self.stem,
            "network_size": self.network_size,
            "layer": self.layer,
            "pooled": self.pooled,
            "precision": self.precision,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.resize,
        }
        # Cards of earlier versions lack these.
        if self.layer_summary != "mean":
            card["layer_summary"] = self.layer_summary
        if self.crop != 1.0:
            card["crop"] = self.crop
        return card


class Encoder:
    """The network of a space in this process; ``batch`` is the largest that its memory took."""

    def __init__(self, space: Learned, network: nn.Module, device: str, batch: int) -> None:
        self.space, self.device, self.batch = space, device, batch
        if encoders.library_of(space.backbone) is None:
            network = folded(network)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = torch.compile(network) if space.compiled else network
        self.mean, self.std = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (space.mean, space.std)
        )
        probe = self(np.zeros((1, space.size, space.size, 3), np.uint8))
        self.shape: tuple[int, ...] = probe.shape[1:]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Map N x size x size x 3 uint8 images to N x shape float32.

        If a batch does not fit in the GPU's memory, its size is halved for all later calls.
        """
        threads = None if self.device == "cpu" and not self.space.compiled else 1
        while True:
            try:
                found = in_batches(
                    lambda rows: self._vectors(images[rows]), len(images), self.batch, threads
                )
                return np.concatenate(found)
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise ManifptError(
                        f"{self.space.name}: one image of {self.space.network_size} pixels needs "
                        "more memory than the GPU has; lower --network-size"
                    ) from None
                self.batch //= 2
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _vectors(self, images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.array(images))  # a copy: Arrow's memory is read-only
        if self.device == "cuda":
            batch = batch.pin_memory()
        pixels = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
        if self.device == "cpu":
            pixels = pad(pixels, (0, 0, 0, 0, 0, 0, 0, -len(images) % CPU_STEP))
        pixels = self._resized(pixels)
        dtype = getattr(torch, self.space.precision)
        with torch.autocast(self.device, dtype, enabled=dtype != torch.float32):
            found = self._layer(pixels).float()
        if dtype == torch.float16:
            # It ends at 65,504; images with larger numbers are embedded again.
            exceeds = ~found.isfinite().flatten(1).all(1)
            if exceeds.any():
                found[exceeds] = self._layer(pixels[exceeds]).float()
        return found[: len(images)].cpu().numpy()

    def _resized(self, pixels: Tensor) -> Tensor:
        seen = self.space.network_size
        side = int(seen / self.space.crop)
        if pixels.shape[-1] != side:
            mode = self.space.resize
            pixels = interpolate(pixels, (side, side), mode=mode, antialias=True).clamp(0, 1)
        edge = round((side - seen) / 2)
        pixels = pixels[:, :, edge : edge + seen, edge : edge + seen]
        normal: Tensor = (pixels - self.mean) / self.std
        return normal.contiguous(memory_format=torch.channels_last)

    def _layer(self, pixels: Tensor) -> Tensor:
        found = self.network(pixels)
        values: Tensor = found["layer"] if isinstance(found, dict) else found
        if self.space.pooled:
            if values.ndim > 2:
                self._check_gram(values)
                return encoders.summarised(values, self.space.layer_summary)
            if self.space.layer_summary != "mean":
                how = self.space.layer_summary
                raise ManifptError(f"--layer-summary {how}: needs a map; name an inner --layer")
            values = values.float()
        elif values.ndim == 3:
            raise ManifptError(f"--layer {self.space.layer}: a sequence is no map; use --pooled")
        return values

    def _check_gram(self, values: Tensor) -> None:
        channels = values.shape[1] if values.ndim == 4 else values.shape[2]
        if self.space.layer_summary == "gram" and channels > MOST_CHANNELS:
            raise ManifptError(
                f"--layer-summary gram: {self.space.layer} has {channels} channels, limit "
                f"{MOST_CHANNELS}; take an earlier --layer, or deviation"
            )


def compiled(space: Any) -> Any:
    """Return a space whose network, if it has one, is compiled in each process."""
    return replace(space, compiled=True) if isinstance(space, Learned) else space


def _at_layer(network: nn.Module, space: Learned) -> nn.Module:
    """Return the part of a network that ends with the space's layer."""
    if encoders.library_of(space.backbone) is not None:
        if space.layer is None:
            return network
        return encoders.Inner(network, space.layer, space.backbone)
    if space.layer is None:
        return without_head(network)
    from torchvision.models.feature_extraction import (
        create_feature_extractor,
        get_graph_node_names,
    )

    try:
        part: nn.Module = create_feature_extractor(network, {space.layer: "layer"})
    except ValueError:
        names = [name.split(".") for name in get_graph_node_names(network)[1][1:]]
        top, below = ([*dict.fromkeys(".".join(n[:k]) for n in names)] for k in (1, 2))
        some = ", ".join((top if len(top) > 5 else below)[:20])
        raise ManifptError(
            f"--layer {space.layer}: {space.backbone} has no such layer; it has {some}"
        ) from None
    return part


@lru_cache(maxsize=4)
def loaded_encoder(space: Learned) -> Encoder:
    """Return the network of a space, loaded once in a process."""
    tensors = read_weights(space.weights, space.weights_sha256)
    if encoders.library_of(space.backbone) is None:
        network, heads = build_backbone(space.backbone, 1, 3, space.stem), None
    else:
        network = encoders.build_encoder(space.backbone, space.network_size)
        heads = encoders.heads_of(network)
    load_into(network, tensors, space.weights, space.backbone, heads)
    device, _ = device_and_precision()
    batch = GPU_BATCH if device == "cuda" else CPU_BATCH
    part = _at_layer(network.eval(), space)
    try:
        return Encoder(space, part, device, batch)
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).splitlines()[0][:200]
        raise ManifptError(f"--compile: {reason}; is there a C++ compiler? leave it out") from None


def keep_weights(space: Any, folder: str) -> Any:
    """Copy a space's weights, if it has any, into an output folder; return it with these.

    Every node can then read them, and a manifold has all files for embedding a query.
    """
    if not isinstance(space, Learned):
        return space
    kept = storage.join(folder, "weights" + (Path(space.weights).suffix or ".pt"))
    storage.write_bytes(kept, storage.read_bytes(space.weights))
    return replace(space, weights=kept)


def weights_entry(space: Any) -> WeightsEntry | None:
    """Return a manifest's entry of the weights that ``keep_weights`` copied."""
    if not isinstance(space, Learned):
        return None
    return {"path": storage.base_name(space.weights), "sha256": space.weights_sha256}
