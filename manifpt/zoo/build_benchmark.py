"""A benchmark, GM-<real set>: one real set, generators trained on it, their samples, and a card.

Every image of every class goes through one encoder (PNG of one mode and size), so that only its
pixels can reveal its source. Splits share no image, exact copies included. A generator whose
samples lie far from the reals, or cover little of them, is not published.
"""

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manifpt import __version__, storage
from manifpt.engine import scaling
from manifpt.errors import DamageError, ManifptError
from manifpt.evaluation.support import support_overlap
from manifpt.images.places import input_places
from manifpt.images.sources import CARD
from manifpt.outputs import claims
from manifpt.outputs.verified import entries, wrong
from manifpt.zoo.benchmark_card import grid, table_of_recipes, write_card
from manifpt.zoo.card_format import BenchmarkCard, GeneratorCard, TarEntry
from manifpt.zoo.generator_training import device, fit_generator, sample
from manifpt.zoo.image_tars import ENCODER, write_tar
from manifpt.zoo.models import build, choices
from manifpt.zoo.reals import Reals, normalised, read_reals
from manifpt.zoo.recipe import Recipe

REAL_COUNTS = {"manifold": 4000, "train": 300, "validation": 100, "test": 200}
GENERATED_COUNTS = {"train": 300, "validation": 100, "test": 200}
# The number of further samples, so that copies can be left out.
SPARE = 1.1
# Measured on pixels averaged over 2 x 2 blocks, of as many samples as reals, at most GATE_IMAGES.
GATE = {"precision": 0.3, "recall": 0.3, "coverage": 0.4}
GATE_IMAGES = 600
PREVIEW = 10

Report = Callable[[str, "GeneratedSamples"], None]


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


def weights_path(recipe: Recipe, reals: Reals, folder: Path) -> Path:
    """Return the path of a recipe's weights; it does not depend on its name and its sampling."""
    trained = {k: v for k, v in recipe.asdict().items() if k not in ("name", "sampling")}
    key = hashlib.sha256(json.dumps(trained, sort_keys=True).encode())
    key.update(reals.images.tobytes())
    return folder / f"{recipe.model}-{key.hexdigest()[:12]}.pt"


def train(recipe: Recipe, reals: Reals, folder: Path, threads: int) -> Path:
    """Train a recipe, unless its weights are in ``folder``; return their path."""
    torch.set_num_threads(threads)
    reals = reals.subset(recipe.data, recipe.seed)
    weights = weights_path(recipe, reals, folder)
    if weights.exists():
        return weights
    started = time.monotonic()
    model, curve = fit_generator(recipe, reals.images)
    facts = {"seconds": time.monotonic() - started, "threads": threads, "curve": curve}
    folder.mkdir(parents=True, exist_ok=True)
    weights.with_suffix(".json").write_text(json.dumps({"recipe": recipe.asdict(), **facts}))
    partial = weights.with_name(f"{weights.name}.{uuid.uuid4().hex[:8]}{storage.PARTIAL}")
    torch.save(model.state_dict(), partial)
    partial.rename(weights)
    return weights


@dataclass
class GeneratedSamples:
    """The samples of a generator, N x H x W x C uint8, its facts and its training curve."""

    samples: np.ndarray
    facts: GeneratorCard
    curve: list[dict[str, float]] = field(default_factory=list)


def draw(recipe: Recipe, weights: Path, reals: Reals, count: int, threads: int) -> GeneratedSamples:
    """Sample a trained recipe; no sample is a copy of another or of a real it was trained on."""
    torch.set_num_threads(threads)
    model = build(recipe, channels=reals.images.shape[3], size=reals.images.shape[1])
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    model.to(device())
    started = time.monotonic()
    samples = sample(model.eval(), int(count * SPARE), recipe.seed)
    seconds = time.monotonic() - started
    facts = json.loads(weights.with_suffix(".json").read_text())
    recipe_card: Any = recipe.asdict()
    return GeneratedSamples(
        distinct(samples, set(pixel_digests(reals.images)))[:count],
        {
            **recipe_card,
            "choices": choices(recipe),
            "parameters": sum(p.numel() for p in model.parameters()),
            "training_seconds": round(facts["seconds"], 1),
            "samples_per_second": round(len(samples) / seconds, 1),
        },
        facts["curve"],
    )


def distinct(images: np.ndarray, taken: set[bytes]) -> np.ndarray:
    """Return the images that differ from each other and from those whose digests are ``taken``."""
    first: dict[bytes, int] = {}
    for row, digest in enumerate(pixel_digests(images)):
        if digest not in taken:
            first.setdefault(digest, row)
    return images[sorted(first.values())]


def block_means(images: np.ndarray) -> np.ndarray:
    """Return N x H x W x C images as vectors of their averages over 2 x 2 pixels."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    vectors: np.ndarray = blocks.mean((2, 4)).reshape(count, -1) / 255
    return vectors


def quality_of(samples: np.ndarray, count: int, references: np.ndarray) -> dict[str, float]:
    """Return the measures of the gate, and density; all zero for hardly distinct samples."""
    share = min(1.0, len(samples) / count)
    if len(samples) < count / 2:
        return {"distinct": share, **dict.fromkeys(GATE, 0.0), "density": 0.0}
    found = support_overlap(references, block_means(samples[: len(references)]))
    return {"distinct": share, **{name: round(value, 3) for name, value in found.items()}}


def is_publishable(quality: dict[str, float]) -> bool:
    """Return whether samples are fit to be published: all distinct, near the reals and diverse."""
    enough = quality["distinct"] == 1
    return enough and all(quality[name] >= least for name, least in GATE.items())


def split_images(images: np.ndarray, counts: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield consecutive pieces of ``images``, one a split."""
    start = 0
    for split, count in counts.items():
        yield split, images[start : start + count]
        start += count


@dataclass(frozen=True)
class BenchmarkPlan:
    """The plan of a benchmark.

    ``real_counts`` and ``generated_counts`` are images a split; ``generated`` are ``NAME=URI`` of
    images that others made; ``weights`` is a local folder where trained generators stay.
    """

    name: str
    real: Sequence[str]
    recipes: Sequence[Recipe]
    weights: str
    generated: Sequence[str] = ()
    seed: int = 0
    image_size: int | None = None
    real_counts: dict[str, int] = field(default_factory=lambda: dict(REAL_COUNTS))
    generated_counts: dict[str, int] = field(default_factory=lambda: dict(GENERATED_COUNTS))
    licence: str = "unknown"


def make(
    plan: BenchmarkPlan, reals: Reals, num_cpus: int, num_gpus: float
) -> Iterator[tuple[str, GeneratedSamples]]:
    """Train and sample the recipes in Ray tasks; yield each one's name and samples, in order."""
    import ray

    shared = ray.put(reals)
    folder = Path(plan.weights).resolve()
    needs = {"num_cpus": num_cpus, "num_gpus": num_gpus}
    scaling.wait_for([{"CPU": num_cpus, "GPU": num_gpus}])
    training = ray.remote(**needs)(train)
    drawing = ray.remote(**needs)(draw)
    count = sum(plan.generated_counts.values())
    trained: dict[str, object] = {}
    pending = []
    for recipe in plan.recipes:
        same = json.dumps({**recipe.asdict(), "name": "", "sampling": {}}, sort_keys=True)
        if same not in trained:
            trained[same] = training.remote(recipe, shared, folder, num_cpus)
        made = drawing.remote(recipe, trained[same], shared, count, num_cpus)
        pending.append((recipe.name, made))
    for name, made in pending:
        yield name, ray.get(made)


def brought(plan: BenchmarkPlan, reals: np.ndarray) -> Iterator[tuple[str, GeneratedSamples]]:
    """Yield images of other origin, decoded by the same rule, with their formats and sizes."""
    _, size, _, channels = reals.shape
    count = sum(plan.generated_counts.values())
    for given in plan.generated:
        name, separator, uri = given.partition("=")
        if not separator:
            raise ManifptError(f"--generated {given}: name the generator, as NAME=URI")
        images, came_as = normalised([uri], size, channels)
        order = np.random.default_rng(plan.seed).permutation(len(images))
        kept = distinct(images[order], set(pixel_digests(reals)))[:count]
        if len(kept) < count:
            raise ManifptError(
                f"--generated {given}: {len(kept)} images that are no copies, {count} are needed; "
                "bring more, or ask for fewer with --train-images and its like"
            )
        yield name, GeneratedSamples(kept, {"brought_from": uri, "came_as": came_as})


def _check_and_clear(claim: claims.Claim, files: Sequence[TarEntry]) -> None:
    """Raise unless the tars are those of this run; remove those of an earlier card."""
    damaged = wrong(claim.folder, entries(list(files)))
    if damaged:
        raise DamageError(
            f"{storage.join(claim.folder, damaged[0])}: is not what this run wrote; start again"
        )
    claim.check()
    uri, written = storage.join(claim.folder, CARD), {file["path"] for file in files}
    before = storage.read_json(uri)["files"] if storage.exists(uri) else []
    for file in before:
        if file["path"] not in written:
            storage.remove_file(storage.join(claim.folder, file["path"]))


@dataclass
class _Gated:
    """The generators of a benchmark, and the files and previews of those that pass the gate."""

    published: dict[str, GeneratorCard] = field(default_factory=dict)
    refused: dict[str, GeneratorCard] = field(default_factory=dict)
    previews: dict[str, np.ndarray] = field(default_factory=dict)
    files: list[TarEntry] = field(default_factory=list)


def _gated(
    plan: BenchmarkPlan,
    generators: Iterable[tuple[str, GeneratedSamples]],
    references: np.ndarray,
    output: str,
    report: Report,
) -> _Gated:
    """Judge each generator's samples, write those that pass the gate; raise if none does."""
    found, count = _Gated(), sum(plan.generated_counts.values())
    for name, made in generators:
        made.facts["quality"] = quality_of(made.samples, count, references)
        report(name, made)
        if not is_publishable(made.facts["quality"]):
            found.refused[name] = made.facts
            continue
        found.published[name] = made.facts
        found.previews[name] = made.samples[:PREVIEW]
        parts = split_images(made.samples, plan.generated_counts)
        found.files += [write_tar(output, name, split, part) for split, part in parts]
    if not found.published:
        raise ManifptError(f"--recipes: no generator passes the gate {GATE}; train them longer")
    return found


def build_benchmark(
    plan: BenchmarkPlan,
    output: str,
    *,
    num_cpus: int = 1,
    num_gpus: float = 0.0,
    terms: claims.Terms = claims.AS_IS,
    report: Report = lambda *_: None,
) -> BenchmarkCard:
    """Make all generators' samples, write those that pass the gate and the card; return it.

    A recipe whose weights are in ``plan.weights`` is not trained again, so that an interrupted
    build goes on where it was.
    """
    output = storage.absolute(output)
    read = [
        *input_places(plan.real, output, "--real"),
        *input_places(plan.generated, output, "--generated"),
    ]
    key = storage.digest(plan.name)
    with claims.claim(output, "benchmark", key, apart=read, terms=terms) as claim:
        images = read_reals(plan.real, plan.image_size)
        splits, pool = split_reals(images.images, plan.real_counts, plan.seed)
        reals = images.take(pool)
        references = block_means(images.images[splits["manifold"][:GATE_IMAGES]])
        files = [
            write_tar(output, "real", split, images.images[rows]) for split, rows in splits.items()
        ]
        every = chain(make(plan, reals, num_cpus, num_gpus), brought(plan, images.images))
        found = _gated(plan, every, references, output, report)
        files += found.files
        card: BenchmarkCard = {
            "name": plan.name,
            "licence": plan.licence,
            "seed": plan.seed,
            "shape": list(images.images.shape[1:]),
            "encoder": ENCODER,
            "real_images": len(images.images),
            "generators_trained_on": len(pool),
            "gate": GATE,
            "order": list(found.published),
            "recipes": found.published,
            "refused": found.refused,
            "files": files,
            "bytes": sum(file["bytes"] for file in files),
            "manifpt": __version__,
        }
        _check_and_clear(claim, files)
        previews = {"real": images.images[splits["test"][:PREVIEW]], **found.previews}
        storage.write_bytes(storage.join(output, "samples.png"), grid(previews))
        storage.write_bytes(storage.join(output, "recipes.csv"), table_of_recipes(found.published))
        write_card(output, card)
        claim.finished = card
        return card
