"""The chain of jobs from reals to a table of accuracies, for the jobs that run all of it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from jobs import (
    build_manifold,
    compute_artifacts,
    evaluate,
    pretrain_embedding,
    train_attribution,
)
from manifpt import job, storage
from manifpt.config import ProjectionConfig

VECTORS = ("sl", "ssl")
# Ends the name of a space whose embeddings are classified as they are, without projection.
FEATURES = "-features"


class ChainConfig(ProjectionConfig):
    """Options of jobs that run the whole chain."""

    benchmark: str = Field("benchmarks/gm-fashionmnist", description="folder of a benchmark")
    sources: tuple[str, ...] = Field(
        ("real", "gan", "vae", "waveletflow", "ddpm"),
        description="which of its classes; all if empty",
    )
    projector: Literal["nearest", "mean", "tangent", "riemannian", "denoiser"] = Field(
        "tangent", description="see compute_artifacts"
    )
    backbone: str = Field("resnet18", description="torchvision classifier, small for two cores")
    stem: str = Field("half", description="see train_attribution")
    epochs: int = Field(6, ge=1, description="of attributors on maps, see train_attribution")
    vector_epochs: int = Field(40, ge=1, description="of attributors on vectors, which are quick")
    encoder_epochs: int = Field(5, ge=1, description="of the encoder, see pretrain_embedding")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="of training; several give the spread of the accuracies"
    )


@contextmanager
def claimed(config: ChainConfig, output: str) -> Iterator[None]:
    """Let no other chain work in a folder during the block; its jobs claim their own folders."""
    from manifpt import claims

    key, apart = storage.digest("chain"), [("--benchmark", config.benchmark)]
    with claims.claim(storage.absolute(output), "chain", key, apart=apart, terms=config.terms):
        yield


class Chain:
    """Runs jobs in this process, one after the other, and times them."""

    def __init__(self, config: ChainConfig, output: str) -> None:
        self.config, self.output = config, output
        self.sources = ("--sources", *config.sources) if config.sources else ()
        ridge, count = ("--ridge", str(config.ridge)), config.neighbors
        neighbors = ("--neighbors", str(count)) if count else ()
        self.projection = ("--projector", config.projector, *ridge, *neighbors)
        self.rates: dict[str, float] = {}

    def place(self, *parts: str) -> str:
        """Return a path under the output folder."""
        return storage.join(self.output, *parts)

    def step(self, title: str, module: Any, *flags: str) -> dict[str, Any]:
        """Run one job; note images/s where it counts them."""
        print(f"== {title}", file=sys.stderr, flush=True)
        started = time.monotonic()
        name = module.__name__.rsplit(".", 1)[-1]
        terms = {"--overwrite": self.config.overwrite, "--take-over": self.config.take_over}
        flags = (*flags, *(flag for flag, chosen in terms.items() if chosen))
        summary = job.execute(name, module.Config, module.run, list(flags), module.__doc__)
        seconds = time.monotonic() - started
        images = summary.get("rows_in") or summary.get("images")
        rate = f", {images / seconds:.0f} images/s" if images else ""
        self.rates[title] = images / seconds if images else 0.0
        print(f"== {title}: {seconds:.1f} s{rate}", file=sys.stderr, flush=True)
        return summary

    def encoder(self) -> tuple[str, ...]:
        """Train an encoder on the reals; return the option that names it."""
        folder = self.place("encoder")
        small = ("--backbone", "resnet18", "--stem", "standard", "--projector-width", "512")
        flags = ("--input", self.config.benchmark, "--output", folder, *small)
        length = ("--epochs", str(self.config.encoder_epochs), "--batch-size", "64")
        self.step("encoder", pretrain_embedding, *flags, *length)
        return "--ssl-weights", folder

    def artifacts(self, spaces: Sequence[str], *options: str, metric: str = "euclidean") -> str:
        """Build manifolds of spaces and compute artifacts, and images, in one pass each.

        ``options`` are build_manifold's. Returns the folder of the artifacts of all spaces.
        """
        beside = "" if metric == "euclidean" else f"-{metric}"
        manifolds, artifacts = self.place(f"manifolds{beside}"), self.place(f"artifacts{beside}")
        bench, names = self.config.benchmark, "+".join(spaces)
        flags = ("--input", bench, "--output", manifolds, "--space", names, "--metric", metric)
        self.step(f"manifolds {names}{beside}", build_manifold, *flags, *options)
        target = ("--manifold", manifolds, "--space", "image", *self.projection)
        self._artifacts(f"artifacts {names}{beside}", artifacts, *target)
        return artifacts

    def features(self, artifacts: str) -> None:
        """Store the embeddings themselves, too, which are spaces of names such as sl-features."""
        target = ("--manifold", self.place("manifolds"), "--projector", "none")
        self._artifacts("features", artifacts + FEATURES, *target)

    def _artifacts(self, title: str, output: str, *target: str) -> None:
        flags = ("--input", self.config.benchmark, "--output", output, *target, *self.sources)
        self.step(title, compute_artifacts, *flags)

    def attributors(
        self,
        name: str,
        artifacts: str,
        fusion: str = "late",
        title: str | None = None,
        seeds: Sequence[int] | None = None,
        known: Sequence[str] = (),
        tested: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """Train and evaluate once a seed on the spaces of a name such as ``rgb+freq``.

        Late fusion takes the attributors of the single spaces, which must be there. Of the sources
        of the artifacts, it trains on those ``known`` and evaluates on those ``tested``; all, if
        none is named. ``options`` are evaluate's.
        """
        train_on, test_on = (("--sources", *s) if s else () for s in (known, tested))
        inputs = [
            storage.join(artifacts + space[len(kind) :], kind)
            for space in name.split("+")
            for kind in [space.removesuffix(FEATURES)]
        ]
        found = []
        for seed in seeds or self.config.seeds:
            beside = "" if seed == self.config.seeds[0] else f"-seed{seed}"
            where = (title or name) + beside
            model = self.place("attributor", where)
            network = ("--backbone", self.config.backbone, "--stem", self.config.stem)
            epochs = (
                self.config.vector_epochs
                if name.removesuffix(FEATURES) in VECTORS
                else self.config.epochs
            )
            length = ("--epochs", str(epochs), "--seed", str(seed))
            if fusion == "late" and len(inputs) > 1:
                members = [self.place("attributor", space + beside) for space in name.split("+")]
                self.step(f"fuse {where}", train_attribution, "--output", model, "--fuse", *members)
            else:
                flags = ("--input", *inputs, "--output", model, "--fusion", fusion, *train_on)
                self.step(f"train {where}", train_attribution, *flags, *network, *length)
            flags = ("--input", *inputs, "--output", self.place("evaluation", where), *test_on)
            flags += options
            found.append(self.step(f"evaluate {where}", evaluate, *flags, "--model", model))
        return found


def table(results: dict[str, list[dict[str, Any]]], names: dict[str, str]) -> str:
    """Return the accuracies as text: with the interval of one seed, or the spread of several."""
    several = len(next(iter(results.values()))) > 1
    spread = "mean of seeds (least-most)" if several else "accuracy (95 % interval)"
    head = f"{'classifier works on':<48}{spread:<28}balanced   macro F1   chance"
    return "\n".join([head, *(row(names.get(n, n), seeds) for n, seeds in results.items())])


def row(title: str, seeds: list[dict[str, Any]]) -> str:
    """Return one line of the table."""
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "chance")
    mean, balanced, macro, chance = (fmean(m[key] for m in seeds) for key in keys)
    low = min(m["accuracy" if len(seeds) > 1 else "accuracy_low"] for m in seeds)
    high = max(m["accuracy" if len(seeds) > 1 else "accuracy_high"] for m in seeds)
    accuracy = f"{mean:.3f} ({low:.3f}-{high:.3f})"
    return f"{title:<47} {accuracy:<28}{balanced:.3f}      {macro:.3f}      {chance:.3f}"
