"""How often groups of test images are told right, against their size and their foreign images."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from manifpt import outputs, storage
from manifpt.attribution.attributor import Attributor
from manifpt.attribution.groups import EPS, Pooling, log_evidence
from manifpt.attribution.registered import opened

SIZES, FOREIGN, SEEDS = (1, 2, 5, 10, 20, 50), (0.0, 0.1, 0.2), (0, 1, 2)
GROUPS = 100  # a class, a seed
# Pools as if no image could be foreign: what the share eps is worth.
PLAIN = 1e-9
RESULT = "groups.json"


def drawn(
    truth: np.ndarray, of: int, size: int, foreign: int, rng: np.random.Generator
) -> np.ndarray:
    """Return GROUPS groups of a class as rows of N labelled images, GROUPS x size.

    Of each group ``foreign`` images are of other classes; none is in a group twice.
    """
    own, others = np.flatnonzero(truth == of), np.flatnonzero(truth != of)
    parts = [
        rows[rng.random((GROUPS, len(rows))).argsort(1)[:, :count]]
        for rows, count in ((own, size - foreign), (others, foreign))
    ]
    return np.concatenate(parts, axis=1)


def group_accuracies(
    probabilities: np.ndarray, truth: np.ndarray, priors: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Yield a row a size of groups and a number of foreign images: accuracies, one a seed.

    ``probabilities`` are N x K, ``truth`` N integers. Accuracies are means over the classes that
    have images enough; ``plain_accuracies`` are without a share for foreign images.
    """
    ways = {"accuracies": EPS, "plain_accuracies": PLAIN}
    evidence = {n: log_evidence(probabilities, np.array(priors), e) for n, e in ways.items()}
    counts = np.bincount(truth, minlength=len(priors))
    for size in (size for size in SIZES if counts.max() >= size):
        classes = np.flatnonzero(counts >= size)
        for foreign in sorted({int(share * size + 0.5) for share in FOREIGN}):
            found: dict[str, list[float]] = {name: [] for name in ways}
            for seed in SEEDS:
                rng = np.random.default_rng([seed, size, foreign])
                groups = {int(c): drawn(truth, int(c), size, foreign, rng) for c in classes}
                for name, values in evidence.items():
                    right = [(values[g].sum(1).argmax(1) == c).mean() for c, g in groups.items()]
                    found[name].append(float(np.mean(right)))
            yield {"size": size, "foreign": foreign, **found}


def _measured(output: str, paths: Sequence[str], pooling: Pooling) -> list[dict[str, Any]]:
    """Return the rows for the scores in some files; in a task, for it reads them all."""
    tables = [storage.read_parquet(storage.join(output, path)) for path in paths]
    probabilities = np.array([p for t in tables for p in t["probabilities"].to_pylist()])
    sources = [source for t in tables for source in t["source"].to_pylist()]
    truth = np.array([pooling.classes.index(source) for source in sources])
    return list(group_accuracies(probabilities, truth, pooling.priors))


def measure_groups(output: str) -> list[dict[str, Any]]:
    """Draw groups from the scores of a finished evaluation; write and return the rows."""
    import ray

    manifest = outputs.require(output, "evaluation", "--output")
    with opened(manifest["model"]) as found:
        pooling = Pooling.of(Attributor.open(found.attributor).manifest)
    paths = [file["path"] for file in manifest["files"] if file["folder"] == "scores"]
    task = ray.remote(num_cpus=1)(_measured)
    rows: list[dict[str, Any]] = ray.get(task.remote(output, paths, pooling))
    storage.write_json(storage.join(output, RESULT), rows)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text: means of seeds, the least and the most."""
    lines = [f"{'images':>6}{'foreign':>9}{'accuracy':>24}{'taking all as genuine':>25}"]
    for row in rows:
        shown = [
            f"{np.mean(a):.3f} ({min(a):.3f}-{max(a):.3f})"
            for a in (row["accuracies"], row["plain_accuracies"])
        ]
        lines.append(f"{row['size']:>6}{row['foreign']:>9}{shown[0]:>24}{shown[1]:>25}")
    return "\n".join(lines)
