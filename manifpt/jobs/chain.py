"""The chain of jobs from reals to a table of accuracies."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from types import ModuleType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from manifpt import storage
from manifpt.cli import job
from manifpt.cli.job_options import ProjectionConfig
from manifpt.cli.shipped import shipped
from manifpt.cli.training_options import MixedShare, TrainingSteps
from manifpt.evaluation.evaluation_format import EvaluationSummary
from manifpt.jobs import (
    build_manifold,
    compute_artifacts,
    evaluate,
    fuse,
    pretrain_embedding,
    train_attribution,
)

# Ends the name of a space whose embeddings are classified as they are, without projection.
FEATURES = "-features"
# Heads on the images themselves, and on their difference to a denoiser's output.
IMAGE, HIGHPASS, DENOISER = "image", "highpass", "denoiser"
# It stands between the name of a head and an offset of its seed, for a second training.
SEED = "@"


class ChainConfig(ProjectionConfig):
    """Options of jobs that run the whole chain."""

    benchmark: Annotated[str, AfterValidator(shipped)] = Field(
        "benchmarks/gm-fashionmnist", validate_default=True, description="folder of a benchmark"
    )
    sources: tuple[str, ...] = Field(
        ("real", "gan", "vae", "waveletflow", "ddpm"),
        description="classes of the benchmark to use; all if empty",
    )
    projector: Literal["nearest", "mean", "tangent", "riemannian"] = Field(
        "tangent", description="see compute_artifacts"
    )
    backbone: str = Field("compact", description="see train_attribution")
    stem: str = Field("auto", description="see train_attribution")
    vectors: Literal["lda", "mlp", "correlation", "knn"] = Field(
        "lda", description="see train_attribution"
    )
    steps: TrainingSteps = 4000
    mixed_share: MixedShare = 0.5
    denoiser_steps: int = Field(3000, ge=1, description="see build_manifold")
    encoder_epochs: int = Field(
        5, ge=1, description="epochs of the encoder's training, see pretrain_embedding"
    )
    accept_biased: bool = Field(False, description="see train_attribution")
    seeds: tuple[int, ...] = Field(
        (0,),
        min_length=1,
        description="seeds of training; several seeds show the spread of the accuracies",
    )

    @property
    def audit_flags(self) -> tuple[str, ...]:
        """The options of the audit before each training."""
        return ("--accept-biased",) if self.accept_biased else ()


@contextmanager
def claimed(config: ChainConfig, output: str) -> Iterator[None]:
    """Let no other chain work in a folder during the block; its jobs claim their own folders."""
    from manifpt.outputs import claims

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

    def step(self, title: str, module: ModuleType, *flags: str) -> Any:
        """Run one job and return its summary; note images/s if it counts them.

        The caller declares the type of the summary.
        """
        print(f"== {title}", file=sys.stderr, flush=True)
        started = time.monotonic()
        name = module.__name__.rsplit(".", 1)[-1]
        terms = {"--overwrite": self.config.overwrite, "--take-over": self.config.take_over}
        flags = (*flags, *(flag for flag, chosen in terms.items() if chosen))
        summary = job.execute(name, module.Config, module.run, list(flags), module.__doc__ or "")
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

    def artifacts(
        self,
        spaces: Sequence[str],
        *options: str,
        metric: str = "euclidean",
        plain: Sequence[str] = (IMAGE,),
    ) -> str:
        """Build manifolds of spaces, and compute artifacts in these and ``plain`` spaces at once.

        ``options`` are build_manifold's. Returns the folder of the artifacts of all spaces.
        """
        beside = "" if metric == "euclidean" else f"-{metric}"
        manifolds, artifacts = self.place(f"manifolds{beside}"), self.place(f"artifacts{beside}")
        bench, names = self.config.benchmark, "+".join(spaces)
        flags = ("--input", bench, "--output", manifolds, "--space", names, "--metric", metric)
        self.step(f"manifolds {names}{beside}", build_manifold, *flags, *options)
        target = ("--manifold", manifolds, "--space", "+".join(plain), *self.projection)
        self._artifacts(f"artifacts {names}{beside}", artifacts, *target)
        return artifacts

    def features(self, artifacts: str) -> None:
        """Store the embeddings themselves, too, as spaces with names such as sl-features."""
        target = ("--manifold", self.place("manifolds"), "--projector", "none")
        self._artifacts("features", artifacts + FEATURES, *target)

    def denoised(self, artifacts: str) -> None:
        """Train a denoiser on the reals, and store the difference of each image to its output."""
        manifold = self.place("manifold-denoiser")
        steps = ("--denoiser", "--denoiser-steps", str(self.config.denoiser_steps))
        flags = ("--input", self.config.benchmark, "--output", manifold, "--space", "rgb")
        self.step(DENOISER, build_manifold, *flags, *steps)
        target = ("--manifold", manifold, "--projector", DENOISER)
        self._artifacts("artifacts denoiser", f"{artifacts}-{DENOISER}", *target)

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
    ) -> list[EvaluationSummary]:
        """Train and evaluate the heads of a name such as ``image+rgb+sl-features``, once a seed.

        ``image@1`` is the head of the image with the next seed. It trains on the sources ``known``
        and evaluates on the sources ``tested``; on all, if none is named.
        ``options`` are evaluate's. A training that is done is not repeated.
        """
        heads = [Member.of(head, artifacts) for head in name.split("+")]
        inputs = tuple(dict.fromkeys(head.artifacts for head in heads))
        train_on, test_on = (("--sources", *s) if s else () for s in (known, tested))
        found: list[EvaluationSummary] = []
        for seed in seeds or self.config.seeds:
            where = self._named(title or name, seed)
            if fusion == "late" and len(heads) > 1:
                members = [self._trained(head, seed, train_on) for head in heads]
                model = self.place("attributor", where)
                self.step(f"fuse {where}", fuse, *members, "--output", model)
            elif len(heads) > 1:
                model = self.place("attributor", where)
                flags = ("--fusion", fusion, "--vectors", "mlp", *train_on)
                self._train(where, model, inputs, seed, *flags)
            else:
                model = self._trained(heads[0], seed, train_on, title)
            place = ("--output", self.evaluation(title or name, seed))
            flags = ("--input", *inputs, *place, *test_on, *options)
            found.append(self.step(f"evaluate {where}", evaluate, *flags, "--model", model))
        return found

    def evaluation(self, title: str, seed: int) -> str:
        """Return the folder of an evaluation."""
        return self.place("evaluation", self._named(title, seed))

    def _named(self, name: str, seed: int) -> str:
        return name if seed == self.config.seeds[0] else f"{name}-seed{seed}"

    def _trained(
        self, head: "Member", seed: int, train_on: Sequence[str], title: str | None = None
    ) -> str:
        """Train the attributor of one head; return its folder."""
        where = self._named(title or head.name, seed + head.later)
        model = self.place("attributor", where)
        filtered = ("--highpass", "only") if head.name == HIGHPASS else ()
        flags = ("--vectors", self.config.vectors, *filtered, *train_on)
        self._train(where, model, (head.artifacts,), seed + head.later, *flags)
        return model

    def _train(self, where: str, model: str, inputs: Sequence[str], seed: int, *flags: str) -> None:
        network = ("--backbone", self.config.backbone, "--stem", self.config.stem)
        length = ("--steps", str(self.config.steps), "--seed", str(seed))
        mixed = ("--mixed-share", str(self.config.mixed_share))
        given = ("--input", *inputs, "--output", model, *network, *length, *mixed)
        self.step(f"train {where}", train_attribution, *given, *self.config.audit_flags, *flags)


class Member(NamedTuple):
    """A head by its name in a table: its artifacts, and the offset of its seed."""

    name: str
    artifacts: str
    later: int

    @classmethod
    def of(cls, text: str, artifacts: str) -> "Member":
        """Return the head of a text such as ``image@1``, from the folder of all artifacts."""
        name, _, later = text.partition(SEED)
        if name == DENOISER:
            place = f"{artifacts}-{DENOISER}"
        elif name.endswith(FEATURES):
            place = storage.join(artifacts + FEATURES, name.removesuffix(FEATURES))
        else:
            place = storage.join(artifacts, IMAGE if name == HIGHPASS else name)
        return cls(name, place, int(later or 0))


def table(results: Mapping[str, Sequence[EvaluationSummary]], names: Mapping[str, str]) -> str:
    """Return the accuracies as text: with the interval of one seed, or the spread of several."""
    several = len(next(iter(results.values()))) > 1
    spread = "mean of seeds (least-most)" if several else "accuracy (95 % interval)"
    head = f"{'classifier works on':<48}{spread:<28}balanced   macro F1   chance"
    return "\n".join([head, *(row(names.get(n, n), seeds) for n, seeds in results.items())])


def row(title: str, seeds: Sequence[EvaluationSummary]) -> str:
    """Return one line of the table."""
    mean = fmean(m["accuracy"] for m in seeds)
    balanced = fmean(m["balanced_accuracy"] for m in seeds)
    macro, chance = fmean(m["macro_f1"] for m in seeds), fmean(m["chance"] for m in seeds)
    low = min(m["accuracy" if len(seeds) > 1 else "accuracy_low"] for m in seeds)
    high = max(m["accuracy" if len(seeds) > 1 else "accuracy_high"] for m in seeds)
    accuracy = f"{mean:.3f} ({low:.3f}-{high:.3f})"
    return f"{title:<47} {accuracy:<28}{balanced:.3f}      {macro:.3f}      {chance:.3f}"
