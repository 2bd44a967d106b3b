"""Artifacts -> a trained attributor, by Ray Train on streams of Ray Data."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

import numpy as np
from torch import Tensor

from manifpt import storage
from manifpt.artifacts.artifact_stage import ARTIFACTS
from manifpt.artifacts.artifacts_format import ArtifactsManifest, ChannelMoments
from manifpt.artifacts.branches import (
    ArtifactBranch,
    are_artifacts,
    artifact_column,
    artifacts_of,
    row_counts,
    stored_columns,
)
from manifpt.artifacts.compute import ArtifactRecipe
from manifpt.attribution.model.attributor_calibration import calibrate_attributor, network_of
from manifpt.attribution.model.attributor_format import (
    AttributorManifest,
    TrainingFacts,
    Validated,
)
from manifpt.attribution.model.augmentation import CUTMIX
from manifpt.attribution.model.correlation import CORRELATION, fit_correlation
from manifpt.attribution.model.discriminant import Discriminant, Rows, fit_discriminant
from manifpt.attribution.model.loop import (
    Standing,
    TrainingSettings,
    TrainingState,
    train_loop,
)
from manifpt.attribution.model.neighbours import NEIGHBOURS, StoredVectors, fit_neighbours
from manifpt.attribution.model.network import LEAST_STD, AttributionNetwork, Design
from manifpt.attribution.model.stream import (
    SHUFFLE_BYTES,
    artifact_rows,
    dataset,
    first_rows,
    moments,
    row_bytes,
)
from manifpt.attribution.model.trained import publish_attributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.audit import training_audit
from manifpt.audit.audit_format import AuditVerdict
from manifpt.baselines.dnadet import PATCHES
from manifpt.engine import pools
from manifpt.engine.tasks import results, task
from manifpt.errors import ManifptError
from manifpt.images.places import input_places
from manifpt.images.sources import Reading
from manifpt.nets import training
from manifpt.nets.device import threads_of
from manifpt.outputs import claims

# Spaces whose maps are no images: spectra, and co-occurrences.
UNMOVABLE = ("freq", "nataraj19")


@final
class StoppedTraining(TrainingFacts, Validated):
    """The facts of a training that stopped before its end, after its best epoch, and its state."""

    state: TrainingState


class FittedHead(NamedTuple):
    """The layers of a head in closed form, and the moments that normalise its artifacts."""

    layers: Discriminant | StoredVectors
    mean: list[float]
    std: list[float]


def _classes(manifest: ArtifactsManifest, sources: Sequence[str]) -> list[str]:
    """Return the classes of a training: ``sources``, or all that have training images."""
    counts = manifest["classes"]
    unknown = [name for name in sources if name not in counts["train"]]
    if unknown:
        raise ManifptError(
            f"--sources {unknown[0]}: no training image of it; there are {sorted(counts['train'])}"
        )
    classes = sorted(sources or counts["train"])
    if "None" in classes:
        raise ManifptError(
            f"--input: {counts['train']['None']} training images name no source; give NAME=URI"
        )
    if len(classes) < 2:
        raise ManifptError(
            f"--input: training needs at least two sources and has {classes}; add --input NAME=URI"
        )
    missing = [name for name in classes if name not in counts["validation"]]
    if missing:
        raise ManifptError(f"--input: no validation image of {missing[0]}; give it more images")
    return classes


def print_epoch(row: dict[str, float], epoch: int) -> None:
    """Print one line of an epoch."""
    print(
        f"epoch {epoch + 1}: train loss {row['train_loss']:.3f}, validation loss "
        f"{row['validation_loss']:.3f}, accuracy {row['validation_accuracy']:.3f}",
        file=sys.stderr,
        flush=True,
    )


@dataclass(frozen=True)
class AttributorControl(training.TrainingControl):
    """The control of an attributor's training: its audit, its stop and its start.

    ``audit`` says how the files of images are audited first. A training that reaches the epoch
    ``until`` before its end is not published: its ``history`` and ``state`` are returned, and the
    same call with a later ``until`` goes on. ``start`` is the file of another's state to go on
    from.
    """

    report: training.EpochLog = print_epoch
    audit: training_audit.Settings = training_audit.USUAL
    until: int | None = None
    start: str | None = None

    def workers(self, batch_size: int) -> training.Placed:
        """Return the workers of the training; this process for heads fitted in closed form."""
        return (1, {"CPU": 1.0}, False) if self.demand.here else super().workers(batch_size)

    def audited(
        self, inputs: Sequence[str], output: str, sources: Sequence[str], labels: Reading
    ) -> AuditVerdict | None:
        """Audit the images of a training first; return the verdict, see ``audit_before``."""
        return training_audit.audit_before(
            inputs,
            output,
            self.audit,
            sources=sources,
            labels=labels,
            demand=self.demand,
            terms=self.terms,
        )

    def audited_artifacts(
        self, branches: Sequence[ArtifactBranch], classes: Sequence[str], output: str
    ) -> AuditVerdict | None:
        """Audit the images of artifacts first; return the verdict, see ``audit_artifacts``."""
        kept = next((one for one in branches if "properties" in one.manifest), branches[0])
        return training_audit.audit_artifacts(
            kept.uri, kept.manifest, classes, output, self.audit, terms=self.terms
        )


def train_attributor(
    inputs: Sequence[str],
    output: str,
    options: TrainingRecipe,
    *,
    recipe: ArtifactRecipe = ArtifactRecipe(),
    sources: Sequence[str] = (),
    control: AttributorControl = AttributorControl(),
) -> AttributorManifest | StoppedTraining:
    """Train on the artifacts of the splits train and validation; return the manifest.

    ``inputs`` are artifacts, in one space or several, or images, whose artifacts ``recipe`` makes;
    these stay in ``output``/artifacts. The files of images are audited first, those of artifacts
    by the sample that was kept beside them; the verdict is in the manifest. With ``sources`` all
    other images are left aside. See ``AttributorControl`` for trainings that stop before their end.
    """
    output, demand, terms = storage.absolute(output), control.demand, control.terms
    workers = control.workers(options.batch_size)
    options = options.resolved(gpu=workers[2])
    own = storage.join(output, "manifold")  # that of the usual attributor
    others = [("--manifold", uri) for uri in recipe.manifolds if uri != own]
    read = [*input_places(inputs, output), *others]
    claims.check_place(output, "attributor", read, terms)
    given, verdict = are_artifacts(inputs), None
    if not given and (recipe.manifolds or recipe.plain):
        verdict = control.audited(inputs, output, sources, recipe.labels)
    place = storage.join(output, "artifacts")
    branches = artifacts_of(inputs, place, recipe, demand=demand, terms=terms)
    classes = _classes(branches[0].manifest, sources)
    if given:
        verdict = control.audited_artifacts(branches, classes, output)
    design = options.design(branches, len(classes))
    content = [[b.manifest["key"], b.manifest["manifold_sha256"]] for b in branches]
    start = [control.start] if control.start else []
    key = storage.digest([content, classes, vars(options), *start])
    keep = ("artifacts", "manifold", *(["audit"] if verdict else []))
    with claims.claim(output, "attributor", key, apart=read, terms=terms, keep=keep) as claim:
        if claim.finished:
            return claim.finished
        read_columns = ARTIFACTS | dict.fromkeys(map(artifact_column, range(len(branches))))
        stored_columns([branch.first for branch in branches]).check("train", read_columns)
        names = [branch.name for branch in branches]
        print(f"train: {design.describe(names)}", file=sys.stderr, flush=True)
        trained = _Trained(branches, classes, design, options)
        state = trained.fit(workers, output, key, control)
        facts = _facts(options, state, verdict)
        if state and not trained.stopped(state):
            return _stopped(facts, state)
        fitted = fit_discriminants(branches, classes, design, demand)
        weights = state["best_weights"] if state else {}
        build = partial(joined_heads, design, trained.heads, weights, fitted)
        parts, fit_facts = calibrate_attributor(build, branches, classes, demand)
        manifest = publish_attributor(claim, parts, {**facts, **fit_facts})
        training.clear(output)
        return manifest


@dataclass
class _Trained:
    """The training by gradients of the heads of a design that need it; there may be none."""

    branches: Sequence[ArtifactBranch]
    classes: list[str]
    whole: Design
    options: TrainingRecipe

    def __post_init__(self) -> None:
        self.heads = [n for n, head in enumerate(self.whole.heads) if head.is_trained]
        self.design, inputs = self.whole.part(self.heads)
        self.read = [self.branches[n] for n in inputs]

    def fit(
        self, workers: training.Placed, output: str, key: str, control: AttributorControl
    ) -> TrainingState | None:
        """Train by Ray Train; return the last checkpoint's state, None without a head."""
        if not self.heads:
            return None
        datasets = {
            split: dataset(self.read, split, self.classes) for split in ("train", "validation")
        }
        self.settings = self._settings(moments(self.read, self.classes, datasets["train"]))
        shuffle_rows = min(self.settings.rows, SHUFFLE_BYTES // row_bytes(self.read))
        config = {
            "settings": self.settings,
            "shuffle_rows": max(self.settings.batch_size, shuffle_rows),
            "until": control.until or self.settings.epochs,
            "start": control.start,
        }
        # Every worker reads all of validation and takes its own rows: none is dropped.
        return training.fit(train_loop, config, datasets, output, key, workers, control)

    def stopped(self, state: TrainingState) -> bool:
        """Tell whether a state is the last of its training."""
        return Standing.of(state).stopped(self.settings)

    def _settings(self, moments: Sequence[ChannelMoments]) -> TrainingSettings:
        names = (
            "batch_size learning_rate weight_decay patience seed augment mixed_share "
            "label_smoothing"
        )
        counts = row_counts(self.branches[0].manifest)["train"]
        rows = sum(counts[name] for name in self.classes)
        budget = self.options.budget(rows)
        names_of = [b.manifest["space"]["name"] for b in self.read]
        movable = tuple(name not in UNMOVABLE for name in names_of)
        if "nataraj19" in names_of and self.options.augment in ("mirror", "shift"):
            raise ManifptError(
                f"--augment {self.options.augment}: co-occurrences have no places to move; choose "
                "cutmix or none"
            )
        maps = [len(shape) == 3 for shape in self.design.shapes]
        if self.options.augment == PATCHES and not all((*movable, *maps)):
            raise ManifptError(
                "--augment patches: takes patches of maps of pixels alone; choose such a space or "
                "another --augment"
            )
        if self.options.augment == CUTMIX and self.design.is_early and not all((*movable, *maps)):
            raise ManifptError(
                "--augment cutmix: one label for spaces of which some cannot be mixed; choose "
                "--fusion late or another --augment"
            )
        return TrainingSettings(
            self.design,
            tuple(self.classes),
            tuple((tuple(m["mean"]), tuple(m["std"])) for m in moments),
            rows,
            budget.epochs,
            budget.passes,
            movable=movable,
            **{name: getattr(self.options, name) for name in names.split()},
        )


def _facts(
    options: TrainingRecipe, state: TrainingState | None, verdict: AuditVerdict | None
) -> TrainingFacts:
    """Return the facts of a training by gradients, if there was one, and of the audit."""
    recipe: Any = vars(options)
    facts: TrainingFacts = {**recipe, "history": [], "best_epoch": None}
    if state:
        facts["history"], facts["best_epoch"] = state["history"], state["best_epoch"]
        facts["precision"] = state["precision"]
    if verdict:
        facts["audit"] = verdict
    return facts


def _stopped(facts: TrainingFacts, state: TrainingState) -> StoppedTraining:
    best = state["history"][state["best_epoch"]]
    return {
        **facts,
        "validation_accuracy": best["validation_accuracy"],
        "validation_loss": best["validation_loss"],
        "state": state,
    }


def fit_discriminants(
    branches: Sequence[ArtifactBranch], classes: list[str], design: Design, demand: pools.Demand
) -> dict[int, FittedHead]:
    """Return a design's heads in closed form by number, fitted in one task a head."""
    pool = pools.pool(pools.Demand(1, 0, here=demand.here), uses_gpu=False)
    pool.wait()
    numbers = [n for n, head in enumerate(design.heads) if not head.is_trained]
    anywhere = {"scheduling_strategy": "DEFAULT"}
    heads = [design.heads[n] for n in numbers]
    asked = [
        task(pool, _fitted, branches[head.reads], head.trunk, classes, pool.threads, **anywhere)
        for head in heads
    ]
    return dict(zip(numbers, results(pool, asked), strict=True))


def _fitted(branch: ArtifactBranch, trunk: str, classes: list[str], threads: int) -> FittedHead:
    """Fit one head, in a task: class means, or another to standardised artifacts."""
    if trunk == CORRELATION:
        size = int(np.prod(branch.manifest["shape"]))
        with threads_of(threads):
            layers = fit_correlation(artifact_rows(branch, "train", classes), len(classes))
        return FittedHead(layers, [0.0] * size, [1.0] * size)
    moments = branch.manifest["moments"]["train"]
    mean = np.array(moments["mean"], dtype=np.float32)
    std = np.maximum(np.array(moments["std"], dtype=np.float32), LEAST_STD)

    def standardised(split: str) -> Iterator[Rows]:
        for artifacts, labels in artifact_rows(branch, split, classes):
            yield (artifacts - mean) / std, labels

    rows = row_counts(branch.manifest)["train"]
    counts = [rows[name] for name in classes]
    with threads_of(threads):
        validation = first_rows(standardised("validation"), len(classes))
        fitted: Discriminant | StoredVectors
        if trunk == NEIGHBOURS:
            stored = first_rows(standardised("train"), len(classes))
            fitted = fit_neighbours(stored, validation, len(classes))
        else:
            fitted = fit_discriminant(standardised("train"), counts, validation)
    return FittedHead(fitted, mean.tolist(), std.tolist())


def joined_heads(
    design: Design,
    trained: Sequence[int],
    weights: dict[str, Tensor],
    fitted: dict[int, FittedHead],
) -> AttributionNetwork:
    """Return the network of trained heads, whose ``weights`` are one network's, and fitted ones."""
    if not fitted:
        return network_of(design, weights)
    network = AttributionNetwork(design)
    for place, number in enumerate(trained):
        prefix = f"branches.{place}."
        mine = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        network.branches[number].load_state_dict(mine)
    for number, (layers, mean, std) in fitted.items():
        branch = network.branches[number]
        branch.normalise_by(mean, std)  # type: ignore[operator]
        branch.get_submodule("trunk").load_state_dict(layers.state())
    return network.eval()
