"""An attributor that nobody trained: random weights, made in a second, good enough for faults."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import torch
from conftest import draw
from PIL import Image

from manifpt import storage
from manifpt.artifacts.branches import open_artifacts
from manifpt.artifacts.projection import Target
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.attribution.model.trained import (
    SEEN,
    WEIGHTS,
    AttributorParts,
    publish_attributor,
)
from manifpt.images import DecodeRule
from manifpt.manifold import StoredManifold
from manifpt.manifold.projector import NEAREST
from manifpt.outputs import claims
from manifpt.spaces import make_space

CLASSES = ["blocks", "real", "stripes"]


def attributor(
    folder: Path | str, manifold: str | None = None, size: int = 16, tiles: int = 0
) -> str:
    """Publish an attributor of images, or of artifacts to the nearest real of a manifold."""
    folder = str(folder)
    if manifold:
        reals = StoredManifold.open(manifold)
        target = Target(reals.space, reals.rule, reals, NEAREST.on(reals.manifest))
    else:
        target = Target(make_space("image", size), DecodeRule(size, tiles=tiles))
    torch.manual_seed(0)
    facts = target.facts()
    design = Design.of(
        (tuple(facts["shape"]),), len(CLASSES), "mobilenet_v3_small", "standard", "late"
    )
    network = AttributionNetwork(design).eval()
    sink = io.BytesIO()
    torch.save(network.state_dict(), sink)
    seen = pa.table({"pixel_sha256": pa.array([], pa.string())})
    branch = {"name": target.space.name, **facts}
    body = {"design": design.card(), "classes": CLASSES, "branches": [branch], "files": {}}
    body["weights"] = network.weights.tolist()
    with claims.claim(folder, "attributor", storage.digest("handmade")) as claim:
        storage.write_bytes(f"{folder}/{WEIGHTS}", sink.getvalue())
        storage.write_bytes(f"{folder}/{SEEN}", storage.parquet_bytes(seen))
        claim.publish(body)
    return folder


def untrained(artifacts: str, output: str) -> str:
    """Publish an attributor of artifacts with all that one of a training says, but weights."""
    branches = open_artifacts([artifacts])
    shapes = tuple(tuple(branch.manifest["shape"]) for branch in branches)
    design = Design.of(shapes, len(CLASSES), "resnet18", "half", "late")
    torch.manual_seed(0)
    network = AttributionNetwork(design)
    network.weights.fill_(4.0)  # some answers are sure
    made = AttributorParts(branches, design, CLASSES, network.state_dict())
    with claims.claim(output, "attributor", "0" * 64) as claim:
        publish_attributor(claim, made, {"validation_accuracy": 0.5, "validation_loss": 1.0})
    return output


def tars(folder: Path, count: int, images: int, size: int = 16, broken_every: int = 97) -> Path:
    """Write tars of PNG files; one in ``broken_every`` is no image."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        with tarfile.open(folder / f"{number:04d}.tar", "w") as tar:
            for i in range(number * images, (number + 1) * images):
                sink = io.BytesIO(b"no image")
                if i % broken_every:
                    sink = io.BytesIO()
                    kind = CLASSES[i % 3]
                    Image.fromarray(draw(kind, i, size)).save(sink, "PNG", compress_level=1)
                member = tarfile.TarInfo(f"{i:06d}.png")
                member.size = len(sink.getvalue())
                tar.addfile(member, io.BytesIO(sink.getvalue()))
    return folder
