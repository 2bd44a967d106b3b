"""Compare inputs and scores for the detection of generators that were not in training.

    manifpt compare_open_set --output open-set --sl-network mobilenet_v2 --sl-weights FILE

Artifacts of all generators of a benchmark are computed once. In each split an attributor is trained
on reals and 16 generators, and tested on unseen images of these and of 8 others. The others are of
three kinds: other seeds of a known recipe, other recipes of a known family, and a family of which
none is known. For the last of the inputs, groups of images are also tested. Finished work is not
repeated.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np
from pydantic import Field

from manifpt import storage
from manifpt.cli import job
from manifpt.cli.config import parse
from manifpt.evaluation.evaluation_format import EvaluationSummary
from manifpt.jobs.chain import DENOISER, IMAGE, Chain, ChainConfig, claimed

KNOWN, UNKNOWN, SEEDS, MOST_OF_FAMILY = 16, 8, 2, 3
# The families that are left out whole, by split.
FAMILIES = (("score",), ("flow", "hybrid"), ("VAE",))
KINDS = ("seed", "recipe", "family")
METRICS: Final = ("auroc", "fpr_at_95_tpr", "oscr")


class Config(ChainConfig):
    """Options of compare_open_set."""

    output: str = Field(description="folder for all outputs, local, s3://, gs:// or az://")
    sources: tuple[str, ...] = Field(
        (), description="sources of the benchmark to use; all if empty"
    )
    splits: int = Field(
        3, ge=1, le=3, description="number of splits of the generators into known and unknown ones"
    )
    spaces: tuple[str, ...] = Field(
        ("rgb", "freq", "sl"), description="embedding spaces for which manifolds are built"
    )
    inputs: tuple[str, ...] = Field(
        ("image", "highpass", "residual", "denoiser", "rgb", "image+highpass+residual+denoiser"),
        description="inputs of classifiers: spaces, image, highpass, residual, denoiser; names "
        "joined by + are late fusions",
    )
    sl_network: str = Field("resnet50", description="see build_manifold")
    sl_weights: str | None = Field(None, description="see build_manifold")
    network_size: int | None = Field(None, ge=16, description="see build_manifold")


class Split(NamedTuple):
    """Generators to train on, and unknown generators by kind."""

    known: list[str]
    unknown: dict[str, list[str]]


def split_of_recipes(recipes: Sequence[dict[str, str]], number: int) -> Split:
    """Return a split, by a rule that does not depend on results.

    FAMILIES[number] is left out whole, and its first MOST_OF_FAMILY recipes are tested. SEEDS
    second seeds are drawn from the others; their first seeds are known, as is the first recipe of
    each family. The rest are drawn: to be tested until there are UNKNOWN, then to be known until
    there are KNOWN. Second seeds that are not drawn are used for nothing.
    """
    rng = np.random.default_rng(number)
    family = {row["name"]: row["family"] for row in recipes}
    apart = FAMILIES[number]
    second = [name for name in family if "-seed" in name and family[name] not in apart]
    firsts = [name for name in family if "-seed" not in name]
    left = [name for name in firsts if family[name] in apart][:MOST_OF_FAMILY]
    rest = [name for name in firsts if family[name] not in apart]
    seeds = sorted(rng.permutation(second)[:SEEDS].tolist())
    others = dict.fromkeys(family[name] for name in rest)
    first = [next(name for name in rest if family[name] == one) for one in others]
    fixed = list(dict.fromkeys([*first, *(name.rpartition("-seed")[0] for name in seeds)]))
    drawn = rng.permutation([name for name in rest if name not in fixed]).tolist()
    tested = UNKNOWN - len(left) - len(seeds)
    known = [*fixed, *drawn[tested:]][:KNOWN]
    return Split(sorted(known), {"seed": seeds, "recipe": sorted(drawn[:tested]), "family": left})


def of_kind(metrics: EvaluationSummary, names: Sequence[str], score: str) -> dict[str, float]:
    """Return the mean metrics of a score against sources with equal numbers of images."""
    found = [metrics["open_set"]["sources"][name] for name in names]
    each = {metric: fmean(s["scores"][score][metric] for s in found) for metric in METRICS}
    return each | {"unknown_found": fmean(s["unknown_found"] for s in found)}


def range_of_splits(values: Sequence[float]) -> str:
    """Return the mean, least and most of the splits."""
    return f"{fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def table_line(
    title: str, results: Sequence[EvaluationSummary], splits: Sequence[Split], score: str
) -> str:
    """Return a row of the table: AUROC, FPR and OSCR for each kind, over the splits."""
    cells = []
    for kind in KINDS:
        each = [of_kind(m, s.unknown[kind], score) for m, s in zip(results, splits, strict=True)]
        cells += [range_of_splits([one[metric] for one in each]) for metric in METRICS]
    return " | ".join([title, *cells])


def result_tables(
    results: Mapping[str, Sequence[EvaluationSummary]], splits: Sequence[Split]
) -> str:
    """Return the tables of inputs, of scores, and of decisions, as text."""
    head = " | ".join(["", *(f"unseen {kind}: {metric}" for kind in KINDS for metric in METRICS)])
    lines = [f"input{head}", *(table_line(n, r, splits, "combined") for n, r in results.items())]
    last = list(results)[-1]
    names = results[last][0]["open_set"]["scores"]
    lines += ["", f"score, on {last}{head}"]
    lines += [table_line(name, results[last], splits, name) for name in names]
    lines += ["", "input | accuracy | ECE before | after | Brier before | after | known called "
              "unknown" + "".join(f" | unseen {kind}" for kind in KINDS)]  # fmt: skip
    for name, found in results.items():
        calibration = [m["calibration"] for m in found]
        cells = [range_of_splits([m["accuracy"] for m in found])]
        for error in ("expected_calibration_error", "brier_score"):
            cells += [
                range_of_splits([c[when][error] for c in calibration])
                for when in ("before", "after")
            ]
        cells.append(range_of_splits([m["open_set"]["false_rejection"] for m in found]))
        for kind in KINDS:
            each = [
                of_kind(m, s.unknown[kind], "combined") for m, s in zip(found, splits, strict=True)
            ]
            cells.append(range_of_splits([one["unknown_found"] for one in each]))
        lines.append(" | ".join([name, *cells]))
    return "\n".join([*lines, "", *group_lines(results[last], splits)])


def group_lines(results: Sequence[EvaluationSummary], splits: Sequence[Split]) -> list[str]:
    """Return the table of groups: known and unknown called unknown, and AUROC, over the splits."""
    head = "".join(f" | unseen {kind}: called unknown | AUROC" for kind in KINDS)
    lines = [f"images in a group | known called unknown{head}"]
    for size in dict.fromkeys(row["size"] for row in results[0]["groups"]["unknown"]):
        rejected = [
            fmean(row["false_rejections"])
            for m in results
            for row in m["groups"]["known"]
            if (row["size"], row["foreign"]) == (size, 0) and row["false_rejections"]
        ]
        cells = [str(size), range_of_splits(rejected)]
        for kind in KINDS:
            of = [
                [r for r in m["groups"]["unknown"] if r["size"] == size and r["source"] in names]
                for m, names in zip(results, (s.unknown[kind] for s in splits), strict=True)
            ]
            means = ([fmean(fmean(r[m]) for r in rows) for rows in of] for m in ("found", "aurocs"))
            cells += map(range_of_splits, means)
        lines.append(" | ".join(cells))
    return lines


def run(config: Config) -> None:
    """Run all trainings; print the tables, and write the metrics."""
    with claimed(config, config.output):
        _run(config)


def _run(config: Config) -> None:
    chain = Chain(config, config.output)
    recipes = storage.read_bytes(storage.join(config.benchmark, "recipes.csv")).decode()
    rows = list(csv.DictReader(io.StringIO(recipes)))
    splits = [split_of_recipes(rows, number) for number in range(config.splits)]
    given = ("--sl-weights", config.sl_weights) if config.sl_weights else ()
    learned = ("--sl-network", config.sl_network, *given) if "sl" in config.spaces else ()
    size = ("--network-size", str(config.network_size)) if config.network_size else ()
    artifacts = chain.artifacts(config.spaces, *learned, *size, plain=(IMAGE, "residual"))
    if any(DENOISER in name for name in config.inputs):
        chain.denoised(artifacts)
    results: dict[str, list[EvaluationSummary]] = {}
    for number, split in enumerate(splits):
        part = Chain(config, chain.place(f"split-{number}"))
        known = ["real", *split.known]
        tested = [*known, *(name for names in split.unknown.values() for name in names)]
        for name in config.inputs:
            groups = ("--groups",) if name == config.inputs[-1] else ()
            made = part.attributors(name, artifacts, known=known, tested=tested, options=groups)
            results.setdefault(name, []).extend(made[:1])
    print(f"\n{result_tables(results, splits)}")
    found = {
        "settings": config.model_dump(mode="json"),
        "splits": [split._asdict() for split in splits],
        "metrics": results,
    }
    storage.write_json(storage.join(config.output, "open_set.json"), found)
    if config.json_file:
        storage.write_json(config.json_file, found)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison as a command."""
    return job.exit_code("compare_open_set", lambda: run(parse(Config, __doc__, argv)))
