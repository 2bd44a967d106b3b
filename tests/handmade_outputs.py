"""Finished outputs that no job made: an evaluation and a crawl, in a second and without Ray."""

import json
from dataclasses import dataclass
from pathlib import Path

import handmade
import numpy as np
import pyarrow as pa
from conftest import draw
from PIL import Image

from manifpt import storage
from manifpt.artifacts.artifact_stage import ARTIFACTS
from manifpt.attribution.crawl.grouping import COORDINATES, GROUP_ROWS
from manifpt.attribution.crawl.leaks import LEAKS
from manifpt.attribution.crawl.stage import AGREEMENT, ATTRIBUTIONS
from manifpt.attribution.crawl.verdicts import verdicts
from manifpt.attribution.unknown.decision import DECISIONS, USUAL
from manifpt.evaluation.closed_set import closed_set_metrics, confusion_matrix
from manifpt.evaluation.evaluate import near_report
from manifpt.evaluation.robustness import metrics_by_level
from manifpt.evaluation.score_report import SCORES, UNKNOWN, confidence_report
from manifpt.images import DecodeRule
from manifpt.manifold.projector import NEAREST
from manifpt.outputs import claims
from manifpt.spaces import make_space
from manifpt.storage import tensors

SIZE = 16
# What a crawl may call an image: markup, a script, an attribute's end, a template, a long word.
HOSTILE = (
    "<img src=x onerror=window.pwned=1>",
    "<script>window.pwned=1</script>",
    '"><svg onload=window.pwned=1>',
    "</script><script>window.pwned=1</script>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:window.pwned=1//" + "long" * 60,
    "<a href=javascript:window.pwned=1>b</a>&lt;b&gt;",
)


def published(
    folder: str, kind: str, body: dict, tables: dict[str, pa.Table], documents: dict | None = None
) -> None:
    """Publish an output: its tables and JSON documents by path, and its manifest."""
    with claims.claim(folder, kind, storage.digest(f"{kind} {folder}")) as claim:
        files = []
        for path, table in tables.items():
            entry = storage.write_bytes(f"{folder}/{path}", storage.parquet_bytes(table))
            entry |= {"path": path, "folder": path.split("/")[0], "rows": table.num_rows}
            files.append(entry)
        for name, value in (documents or {}).items():
            storage.write_json(f"{folder}/{name}", value)
        claim.publish(body | {"files": files})


def drawn(folder: Path, kind: str, number: int, size: int = SIZE) -> tuple[str, np.ndarray]:
    """Write an image of a kind; return its URI and its pixels."""
    pixels = draw(kind if kind in ("stripes", "blocks") else "real", number, size)
    path = folder / f"{kind}-{number:04d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return str(path), pixels


def columns(rows: list[dict], schema: dict) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))


def artifacts(folder: str, images: Path, sources: list[str], count: int) -> list[dict]:
    """Publish artifacts to a manifold that is gone; return rows with their ids and sources."""
    rng, rows, arrays = np.random.default_rng(0), [], []
    for source in sources:
        for number in range(count):
            uri, pixels = drawn(images, source, number)
            star = draw("real", number, SIZE)
            rows.append({"id": f"{source}/{number:04d}", "source": source, "split": "test"})
            rows[-1] |= {"uri": uri, "sha256": storage.digest(uri), "pixel_sha256": "p"}
            rows[-1] |= {"neighbor_id": f"real/{number}", "distance": rng.uniform(1, 4)}
            rows[-1] |= {"percentile": rng.uniform(0, 100), "in_manifold": False}
            arrays.append((pixels.astype(np.float32) - star).transpose(2, 0, 1) / 255)
    table = columns(rows, ARTIFACTS).append_column("artifact", tensors.to_column(np.stack(arrays)))
    recipes = [
        f"{name},{number},{('gan', 'vae')[number % 2]}" for number, name in enumerate(sources)
    ]
    text = "\n".join(["name,seed,family", *recipes])
    storage.write_bytes(f"{folder}-benchmark/recipes.csv", text.encode())
    body = {
        "inputs": {"given": [f"{folder}-benchmark"], "content_key": "c"},
        "space": make_space("rgb", SIZE).card(),
        "shape": [3, SIZE, SIZE],
        "decode": DecodeRule(SIZE).card(),
        "manifold": f"{folder}-manifold-that-is-gone",
        "manifold_sha256": "m" * 64,
        "projection": NEAREST.card(),
    }
    published(folder, "artifacts", body, {"test/000000-000000.parquet": table})
    return rows


def scores(rows: list[dict], classes: list[str], strange: float) -> pa.Table:
    """Return the scores of rows, most of them right and some of them unsure."""
    rng, made = np.random.default_rng(1), []
    for row in rows:
        logits = rng.normal(0, 1, len(classes))
        if row["source"] in classes:
            logits[classes.index(row["source"])] += 3
        probabilities = np.exp(logits) / np.exp(logits).sum()
        best, score = int(probabilities.argmax()), float(rng.normal(strange, 1))
        p = float(1 / (1 + np.exp(score - 1)))
        answer = "real" if classes[best] == "real" else "generator"
        sure = answer if probabilities[best] > 0.5 else "unsure"
        kept = {name: row[name] for name in ("id", "source", "sha256", "neighbor_id", "distance")}
        kept |= {"prediction": classes[best], "probability": probabilities[best]}
        kept |= {"probabilities": probabilities, "uncalibrated": probabilities**2}
        kept |= {"decision": "unknown" if p < 0.1 else sure, "unknown_p": p}
        kept |= {"unknown_score": score, "unknown_scores": [score, 1.0, 2.0]}
        made.append(kept | {"coordinates": logits.astype(np.float32)})
    return pa.Table.from_pylist(made)


def evaluation(folder: Path, classes: list[str], others: list[str], count: int = 20) -> str:
    """Publish an evaluation of the images of ``classes``, and of ``others`` that are unknown."""
    place = str(folder / "evaluation")
    rows = artifacts(str(folder / "artifacts"), folder / "images", [*classes, *others], count)
    parts = {SCORES: (classes, 0.0), UNKNOWN: (others, 3.0)}
    tables = {
        name: scores([r for r in rows if r["source"] in sources], classes, strange)
        for name, (sources, strange) in parts.items()
    }
    truth, predicted = (
        np.array([classes.index(name) for name in tables[SCORES][column].to_pylist()])
        for column in ("source", "prediction")
    )
    matrix = confusion_matrix(truth, predicted, len(classes))
    paths = {name: [f"{folder}/{name}.parquet"] for name in parts}
    for name, table in tables.items():
        storage.write_bytes(paths[name][0], storage.parquet_bytes(table))
    names = ["max_probability", "distance", "direction"]
    metrics = closed_set_metrics(matrix, classes)
    metrics |= {"near_training": near_report(matrix, 0 * matrix, 0, keep_near=False)}
    metrics |= confidence_report(paths, classes, names, USUAL)
    metrics["left_out"] = {"seen": 0, "other_source": 0, "near_training": 0}
    runs = [0.8, 0.85, 0.9]
    known = [{"size": n, "foreign": 0, "accuracies": runs} for n in (1, 2, 5)]
    groups = {"known": known, "unknown": []}
    body = {"model": str(folder / "model"), "attributor": "k", **metrics}
    body["artifacts"] = [str(folder / "artifacts")]
    files = {f"{name}/000000-000000.parquet": table for name, table in tables.items()}
    published(place, "evaluation", body, files, {"metrics.json": metrics, "groups.json": groups})
    return place


def robustness(folder: Path, classes: list[str]) -> str:
    """Publish what degradations do to the attributor of ``evaluation``."""
    rights = {"identity": 18, "jpeg:75": 15, "jpeg:50": 9, "blur:1": 12}
    count, part = len(classes), {}
    for name, right in rights.items():
        matrix = np.full((count, count), 20 - right) // (count - 1)
        np.fill_diagonal(matrix, right)
        part[name] = {"confusion": matrix.tolist(), "confidence": 0.8 * matrix.sum()}
    result = metrics_by_level([part], list(rights), classes)
    body = {"model": str(folder / "model"), "attributor": "k", **result}
    place = str(folder / "robustness")
    published(place, "robustness", body, {}, {"robustness.json": result})
    return place


def crawl(
    folder: Path,
    model: str,
    classes: list[str],
    count: int = 60,
    size: int = SIZE,
    metadata: dict[str, list[str | None]] | None = None,
    **facts: object,
) -> str:
    """Publish the attributions of a crawl with odd names, groups, and a quarantine.

    ``metadata`` are columns of the input, whose values come again and again; ``facts`` are in the
    manifest alone.
    """
    place, rng, rows = str(folder / "verdicts"), np.random.default_rng(2), []
    for number in range(count):
        name = HOSTILE[number % len(HOSTILE)]
        uri, _ = drawn(folder / "crawl", ("real", "stripes", "blocks")[number % 3], number, size)
        if number % 5 == 0:
            uri = f"https://{'example.org' if number % 2 else 'images.example'}/{name}"
        order = rng.permutation(len(classes))
        top = [{"source": classes[n], "probability": 0.9 / (k + 1)} for k, n in enumerate(order)]
        row = {"id": f"{number:03d}/{name}", "uri": uri, "sha256": storage.digest(number)}
        row |= {"status": "ok", "top_k": top, "prediction": top[0]["source"], "probability": 0.9}
        row |= {"decision": DECISIONS[number % 4], "unknown_p": float(rng.uniform())}
        row |= {"neighbor_id": f"{name}~2", "distance": 2.5, "percentile": 30.0, "agreement": 3}
        row |= {name: values[number % len(values)] for name, values in (metadata or {}).items()}
        rows.append(row | dict.fromkeys(LEAKS, False))
    schema = ATTRIBUTIONS | AGREEMENT | dict.fromkeys(LEAKS, pa.bool_())
    schema |= dict.fromkeys(metadata or (), pa.string())
    table = columns(rows, schema)
    broken = [{"id": n, "uri": n, "error": "corrupt", "message": n} for n in HOSTILE]
    group = {"images": 9, "counted": 9, "prediction": classes[0], "probability": 0.9}
    group |= {"probability_low": 0.8, "probability_high": 1.0, "agreeing": 0.9, "unknown": 0.1}
    groups = [{"group": n, "unknown_p": 0.3, "decision": "generator", **group} for n in HOSTILE]
    logits = rng.normal(0, 2, (count, len(classes)))
    evidence = {
        "group": pa.array([HOSTILE[number % len(HOSTILE)] for number in range(count)]),
        "sha256": table["sha256"],
        "decision": table["decision"],
        "probabilities": tensors.to_column(
            np.float32(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        ),
        COORDINATES: tensors.to_column(logits.astype(np.float32)),
    }
    files = {
        "attributions/000000-000000.parquet": table,
        "evidence/000000-000000.parquet": pa.table(evidence),
        "quarantine/000000-000000.parquet": pa.Table.from_pylist(broken),
        "groups/000000.parquet": columns(groups, GROUP_ROWS),
    }
    counts = {name: table["decision"].to_pylist().count(name) for name in DECISIONS}
    summary = {"rows_in": count + len(broken), "ok": count, "quarantined": len(broken)}
    summary |= {"by_error": {"corrupt": len(broken)}, "decisions": counts, **verdicts(table)}
    summary |= {"leaks": dict.fromkeys(LEAKS, 1), "duplicates": {"exact": 2, "near": 3}}
    summary |= {"groups": {"groups": len(groups), "images": count}, "manifolds": []}
    summary |= {"seconds": 12.5, "images_per_second": 5.4, "model": model, "skipped": {}}
    summary |= {"inputs": {"given": [f"{folder}/{HOSTILE[0]}"], "content_key": "c"}}
    summary = json.loads(json.dumps(summary))
    body = summary | facts
    published(place, "attributions", body, files, {"summary.json": summary})
    return place


# Columns of the shared crawl's input, whose values come again and again.
METADATA: dict[str, list[str | None]] = {
    "<i>caption": list(HOSTILE),
    "<b>captured": ["2024-03-09", "2024-03-31T23:59:59Z", "2025-01-02 10:00", None],
}
# Its rows of 200 bins of 36 seconds, and the seconds at which it began and went on.
WORKED = {"seconds_per_bin": 36.0, "rows": [360] * 150 + [36] * 50, "starts": [0.0, 3600.0]}


@dataclass(frozen=True)
class Finished:
    """Outputs that no job made, for all tests of pages: what strangers wrote holds HTML."""

    folder: Path
    model: str
    evaluation: str
    robustness: str
    crawl: str

    @classmethod
    def made(cls, folder: Path) -> "Finished":
        """Publish them in a folder."""
        model, classes = handmade.attributor(folder / "model"), handmade.CLASSES
        found = crawl(folder, model, classes, metadata=METADATA, rows_over_time=WORKED)
        measured = evaluation(folder, classes, [HOSTILE[0]])
        return cls(folder, model, measured, robustness(folder, classes), found)
