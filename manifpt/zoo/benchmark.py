"""GM-<real set>: one real set, generators trained on it, samples of each, and a card.

Every image of every class goes through one encoder (PNG of one mode and size), so that nothing
but its pixels can tell where it comes from. Splits share no image, exact copies included.
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from manifpt import __version__, storage
from manifpt.errors import ManifptError
from manifpt.images.sources import CARD
from manifpt.zoo.reals import read_reals
from manifpt.zoo.training import MODELS, Recipe, build, fit, sample

REAL_COUNTS = {"manifold": 4000, "train": 300, "validation": 100, "test": 200}
GENERATED_COUNTS = {"train": 300, "validation": 100, "test": 200}
# Sampled beyond what is kept, so that copies can be left out.
SPARE = 1.1


def read_recipes(path: str) -> list[Recipe]:
    """Return the recipes of a YAML file."""
    try:
        values = yaml.safe_load(Path(path).read_text())
        recipes = [Recipe(**value) for value in values]
    except (OSError, TypeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ManifptError(f"--recipes {path}: {reason}; see manifpt/zoo/recipes.yaml") from None
    for recipe in recipes:
        if recipe.model not in MODELS:
            known = ", ".join(MODELS)
            raise ManifptError(
                f"--recipes {path}: no model {recipe.model!r}; choose one of {known}"
            )
    return recipes


def pixel_digests(images: np.ndarray) -> list[bytes]:
    """Return the sha256 of each image's pixels."""
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


def split_reals(
    images: np.ndarray, counts: dict[str, int], seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draw disjoint splits of N x H x W x C uint8 reals, exact duplicates left out.

    Returns the row numbers of each split, and those that generators may train on: all rows but
    copies and the reals held out for training, validation and test of attributors.
    """
    first: dict[bytes, int] = {}
    for row, digest in enumerate(pixel_digests(images)):
        first.setdefault(digest, row)
    if len(first) <= sum(counts.values()):
        raise ManifptError(
            f"--real: {len(first)} distinct images, and the splits alone take "
            f"{sum(counts.values())}; give more reals or ask for fewer"
        )
    unique = np.random.default_rng(seed).permutation(np.array(sorted(first.values())))
    edges = np.cumsum([0, *counts.values()])
    splits = {name: unique[edges[i] : edges[i + 1]] for i, name in enumerate(counts)}
    held_out = np.concatenate([rows for name, rows in splits.items() if name != "manifold"])
    return splits, np.setdiff1d(unique, held_out)


def trained(recipe: Recipe, images: np.ndarray, folder: Path) -> nn.Module:
    """Return the recipe's model trained on ``images``, from ``folder`` if it was trained before."""
    key = hashlib.sha256(json.dumps(recipe.asdict(), sort_keys=True).encode())
    key.update(images.tobytes())
    weights = folder / f"{recipe.name}-{key.hexdigest()[:12]}.pt"
    if weights.exists():
        model = build(recipe, channels=images.shape[3], size=images.shape[1])
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model.eval()
    model, curve = fit(recipe, images)
    folder.mkdir(parents=True, exist_ok=True)
    weights.with_suffix(".json").write_text(json.dumps({"recipe": recipe.asdict(), "curve": curve}))
    partial = weights.with_suffix(".partial")
    torch.save(model.state_dict(), partial)
    partial.rename(weights)
    return model


def distinct_samples(model: nn.Module, count: int, seed: int, taken: set[bytes]) -> np.ndarray:
    """Return ``count`` samples that differ from each other and from ``taken``."""
    images = sample(model, int(count * SPARE), seed)
    kept = []
    for image, digest in zip(images, pixel_digests(images), strict=True):
        if digest not in taken:
            taken.add(digest)
            kept.append(image)
    if len(kept) < count:
        raise ManifptError(
            f"only {len(kept)} of {len(images)} samples are distinct: the generator has collapsed; "
            f"train it longer or with another seed"
        )
    return np.stack(kept[:count])


def png(image: np.ndarray) -> bytes:
    """Encode H x W x C uint8 pixels, C = 1 or 3: the one encoder of all classes."""
    sink = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
        sink, "PNG", optimize=True
    )
    return sink.getvalue()


def tar_of(images: np.ndarray) -> bytes:
    """Return a WebDataset tar, gzipped, of numbered PNG; equal images give equal bytes."""
    sink = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=sink, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for number, image in enumerate(images):
            data = png(image)
            member = tarfile.TarInfo(f"{number:05d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def _write(output: str, source: str, split: str, images: np.ndarray) -> dict[str, Any]:
    path = f"{source}/{split}.tar.gz"
    written = storage.write_bytes(storage.join(output, path), tar_of(images))
    return {"path": path, "source": source, "split": split, "images": len(images), **written}


def _generated(
    recipe: Recipe, images: np.ndarray, folder: Path, counts: dict[str, int]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train and sample one recipe with one thread; return samples and facts for the card."""
    torch.set_num_threads(1)
    model = trained(recipe, images, folder)
    taken = set(pixel_digests(images))
    samples = distinct_samples(model, sum(counts.values()), recipe.seed, taken)
    parameters = sum(p.numel() for p in model.parameters())
    return samples, recipe.asdict() | {"parameters": parameters}


def cut(images: np.ndarray, counts: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield consecutive pieces of ``images``, one a split."""
    start = 0
    for split, count in counts.items():
        yield split, images[start : start + count]
        start += count


def build_benchmark(
    name: str,
    real: Sequence[str],
    recipes: Sequence[Recipe],
    output: str,
    weights: str,
    *,
    seed: int = 0,
    image_size: int | None = None,
    real_counts: dict[str, int] | None = None,
    generated_counts: dict[str, int] | None = None,
    licence: str = "unknown",
) -> dict[str, Any]:
    """Train the recipes in parallel Ray tasks, sample them, write tars and card; return the card.

    ``weights`` is a local folder where trained generators stay: a recipe found there is not
    trained again.
    """
    import ray

    real_counts = real_counts or REAL_COUNTS
    generated_counts = generated_counts or GENERATED_COUNTS
    images = read_reals(real, image_size)
    splits, pool = split_reals(images, real_counts, seed)
    shared = ray.put(images[pool])
    task = ray.remote(num_cpus=1)(_generated)
    folder = Path(weights).resolve()
    pending = [task.remote(recipe, shared, folder, generated_counts) for recipe in recipes]
    files = [_write(output, "real", split, images[rows]) for split, rows in splits.items()]
    cards, rows = {}, {"real": images[splits["test"][:10]]}
    for recipe, reference in zip(recipes, pending, strict=True):
        samples, cards[recipe.name] = ray.get(reference)
        rows[recipe.name] = samples[:10]
        files += [
            _write(output, recipe.name, split, part)
            for split, part in cut(samples, generated_counts)
        ]
    card = {
        "name": name,
        "licence": licence,
        "seed": seed,
        "shape": list(images.shape[1:]),
        "encoder": "PNG, optimised, by Pillow; mode L if grey, else RGB",
        "real_images": len(images),
        "generators_trained_on": len(pool),
        "recipes": cards,
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "manifpt": __version__,
    }
    storage.write_bytes(storage.join(output, "samples.png"), grid(rows))
    storage.write_bytes(storage.join(output, "README.md"), markdown(card).encode())
    storage.write_json(storage.join(output, CARD), card)
    return card


def grid(rows: dict[str, np.ndarray], scale: int = 2) -> bytes:
    """Return a PNG with one line of images a source."""
    lines = [np.concatenate(list(images), axis=1) for images in rows.values()]
    picture = np.concatenate(lines, axis=0).repeat(scale, 0).repeat(scale, 1)
    return png(picture)


def markdown(card: dict[str, Any]) -> str:
    """Render a card for people."""
    sources = list(dict.fromkeys(file["source"] for file in card["files"]))
    counts = {(f["source"], f["split"]): f["images"] for f in card["files"]}
    splits = list(dict.fromkeys(file["split"] for file in card["files"]))
    lines = [
        f"# {card['name']}",
        "",
        f"{' x '.join(map(str, card['shape']))} images, {card['bytes'] / 2**20:.1f} MiB, "
        f"seed {card['seed']}. Licence of the reals: {card['licence']}. "
        f"Encoder of every image: {card['encoder']}.",
        f"Generators were trained on {card['generators_trained_on']} reals: all but copies and the "
        "reals held out for train, validation and test. No image is in two splits.",
        "",
        "| source | model | seed | steps x batch | parameters | " + " | ".join(splits) + " |",
        "|---" * (5 + len(splits)) + "|",
    ]
    for source in sources:
        recipe = card["recipes"].get(source)
        facts = ["-"] * 4
        if recipe:
            steps = f"{recipe['steps']} x {recipe['batch_size']}"
            facts = [recipe["model"], recipe["seed"], steps, recipe["parameters"]]
        numbers = [counts.get((source, split), 0) for split in splits]
        lines.append("| " + " | ".join(map(str, [source, *facts, *numbers])) + " |")
    order = ", ".join(sources)
    lines += ["", "![samples](samples.png)", "", f"From the top: {order}."]
    lines += ["", "Sizes and hashes of all files are in `card.json`.", ""]
    return "\n".join(lines)


def verify(folder: str) -> list[str]:
    """Return the files of a benchmark whose content differs from its card."""
    card = storage.read_json(storage.join(folder, CARD))
    return [
        file["path"]
        for file in card["files"]
        if hashlib.sha256(storage.read_bytes(storage.join(folder, file["path"]))).hexdigest()
        != file["sha256"]
    ]
