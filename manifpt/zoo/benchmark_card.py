"""The card of a benchmark: its content, its recipes, and the check of its files."""

import csv
import hashlib
import io
import json

import numpy as np

from manifpt import storage
from manifpt.images.sources import CARD
from manifpt.zoo.card_format import BenchmarkCard, CardAccuracies, GeneratorCard
from manifpt.zoo.image_tars import encode_png


def grid(rows: dict[str, np.ndarray], scale: int = 2) -> bytes:
    """Return a PNG with one line of images a source."""
    lines = [np.concatenate(list(images), axis=1) for images in rows.values()]
    picture = np.concatenate(lines, axis=0).repeat(scale, 0).repeat(scale, 1)
    return encode_png(picture)


def table_of_recipes(recipes: dict[str, GeneratorCard]) -> bytes:
    """Return the design choices of all generators as CSV, one line each: labels for experiments."""
    rows = [
        {"name": name, "seed": facts.get("seed"), **facts.get("choices", {})}
        for name, facts in recipes.items()
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()


def _design(facts: GeneratorCard) -> str:
    """Describe in a few words how a recipe differs from the defaults."""
    said = facts.get("options", {}) | facts.get("sampling", {}) | facts.get("data", {})
    return ", ".join(f"{name} {value}" for name, value in said.items()) or "-"


def _row(name: str, facts: GeneratorCard) -> str:
    q = facts["quality"]
    quality = [f"{q[k]:.2f}" for k in ("precision", "recall", "density", "coverage")]
    if "choices" not in facts:
        unknown = ["brought", "-", facts["brought_from"], "-", "-", "-"]
        return "| " + " | ".join([name, *unknown, *quality]) + " |"
    cells = [
        name,
        facts["choices"]["family"],
        facts["seed"],
        _design(facts),
        f"{facts['steps']} x {facts['batch_size']}",
        facts["parameters"],
        f"{facts['training_seconds']:.0f}",
        *quality,
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def _accuracies(measured: CardAccuracies | None) -> list[str]:
    """Return the lines with the accuracies of classifiers, if they are known."""
    if measured is None:
        return []
    lines = [
        "How well a classifier tells the classes apart on the test split "
        f"({', '.join(f'{k} {v}' for k, v in measured['settings'].items() if v != [])}):",
        "",
        "| input | accuracy, mean of seeds | least | most | chance |",
        "|---" * 5 + "|",
    ]
    for name, seeds in measured["metrics"].items():
        found = [metrics["accuracy"] for metrics in seeds]
        cells = (sum(found) / len(found), min(found), max(found), seeds[0]["chance"])
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in cells)} |")
    return [*lines, ""]


def write_card(output: str, card: BenchmarkCard) -> None:
    """Write the card as JSON with sorted keys, and as Markdown."""
    card = json.loads(json.dumps(card, sort_keys=True))
    storage.write_bytes(storage.join(output, "README.md"), card_markdown(card).encode())
    storage.write_json(storage.join(output, CARD), card)


def add_accuracies(folder: str, uri: str) -> None:
    """Put the accuracies that ``manifpt quickstart --json`` wrote on a benchmark's card."""
    card, measured = storage.read_json(storage.join(folder, CARD)), storage.read_json(uri)
    kept = ("accuracy", "accuracy_low", "accuracy_high", "chance", "images")
    metrics = {
        name: [{key: seed[key] for key in kept} for seed in seeds]
        for name, seeds in measured["metrics"].items()
    }
    card["accuracies"] = {"settings": measured["settings"], "metrics": metrics}
    write_card(folder, card)


def card_markdown(card: BenchmarkCard) -> str:
    """Render a card for people."""
    splits = dict.fromkeys(file["split"] for file in card["files"])
    counts = {(f["source"], f["split"]): f["images"] for f in card["files"]}
    generated = next(iter(card["recipes"]))
    shares = [
        f"{split} {counts.get(('real', split), 0)} reals and "
        f"{counts.get((generated, split), 0)} samples of each generator"
        for split in splits
    ]
    gate = ", ".join(f"{name} {least}" for name, least in card["gate"].items())
    lines = [
        f"# {card['name']}",
        "",
        f"{' x '.join(map(str, card['shape']))} images of {len(card['recipes'])} generators and "
        f"their reals, {card['bytes'] / 2**20:.1f} MiB, seed {card['seed']}. Licence of the reals: "
        f"{card['licence']}. Encoder of every image: {card['encoder']}.",
        "",
        f"Splits: {'; '.join(shares)}. No image is in two of them. Generators were trained on "
        f"{card['generators_trained_on']} reals, all but copies and the reals held out for train, "
        "validation and test, unless their recipe takes less.",
        "",
        "| name | family | seed | design, where not the default | steps x batch | parameters | "
        "training s | precision | recall | density | coverage |",
        "|---" * 11 + "|",
        *(_row(name, card["recipes"][name]) for name in card["order"]),
        "",
        "Training s is wall time, on cores that other work may have shared. "
        "Precision, recall, density and coverage: of as many samples as reals (at most 600, of the "
        "manifold), k 5, on pixels averaged over 2 x 2 blocks. A generator is published if it has "
        f"at least {gate}; "
        f"refused: {', '.join(card['refused']) or 'none'}.",
        "",
        *_accuracies(card.get("accuracies")),
        "![samples](samples.png)",
        "",
        f"From the top: real, {', '.join(card['order'])}.",
        "",
        "All design choices are in `recipes.csv`; sizes and hashes of all files in `card.json`.",
        "",
    ]
    return "\n".join(lines)


def files_off_card(folder: str) -> list[str]:
    """Return the files of a benchmark whose content differs from its card."""
    card = storage.read_json(storage.join(folder, CARD))
    return [
        file["path"]
        for file in card["files"]
        if hashlib.sha256(storage.read_bytes(storage.join(folder, file["path"]))).hexdigest()
        != file["sha256"]
    ]
