"""Artifacts, attributors and evaluations of one benchmark, each made once, when it is asked for."""

from collections.abc import Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from manifpt import storage
from manifpt.evaluation.evaluation_format import EvaluationSummary
from manifpt.jobs import build_manifold, compute_artifacts, evaluate, fuse, train_attribution
from manifpt.jobs.chain import Chain
from manifpt.jobs.reproduction.methods import (
    DEGRADED,
    DENOISED,
    FEATURES,
    NEAREST,
    PLAIN,
    TANGENT,
    ArtifactPlace,
    ComparedMethod,
)

if TYPE_CHECKING:
    from manifpt.jobs.reproduce import Config

BASELINES = ("mccloskey18", "nataraj19", "durall20", "dzanic20", "marra19")
LATER = ("image", "residual", "npr", "lowbits", "selfdescription")
PROJECTED = ("rgb", "freq", "residual")
# The augmentation of Wang20, with the ranges of the authors' code (github.com/PeterWang512/
# CNNDetection). There an image has each by a chance of one half; here half of the images are copies
# that have one of them, since copies are made before the training.
BLUR_AND_JPEG = ("--augment", "blur:0-3", "jpeg:30-100")


class Study(Chain):
    """The jobs of one benchmark, in one folder.

    Artifacts are of all its sources, or of ``only`` some; classifiers learn the sources of the
    configuration, or those that a table names. ``only`` is for a second benchmark.
    """

    def __init__(
        self,
        config: "Config",
        benchmark: str,
        output: str,
        only: Sequence[str] = (),
    ) -> None:
        super().__init__(config, output)
        self.benchmark = benchmark
        self.learned, self.encoders = config.learned, config.encoders
        self.sources = ("--sources", *only) if only else ()
        self._summaries: dict[str, Any] = {}

    def once(self, title: str, module: ModuleType, folder: str, *flags: str) -> Any:
        """Run the job that makes a folder, unless this process has; return its summary."""
        if folder not in self._summaries:
            self._summaries[folder] = self.step(title, module, "--output", folder, *flags)
        return self._summaries[folder]

    @cached_property
    def manifolds(self) -> str:
        """The folder of the manifolds of all spaces, of the benchmark's reals."""
        folder, spaces = self.place("manifolds"), (*PROJECTED, *self.learned)
        flags = ("--input", self.benchmark, "--output", folder, "--space", "+".join(spaces))
        self.step("manifolds", build_manifold, *flags, *self.encoders)
        return folder

    @cached_property
    def denoiser(self) -> str:
        """The folder of the manifold with a denoiser that has learned from the reals."""
        folder = self.place("manifold-denoiser")
        steps = ("--denoiser", "--denoiser-steps", str(self.config.denoiser_steps))
        flags = ("--input", self.benchmark, "--output", folder, "--space", "rgb")
        self.step("denoiser", build_manifold, *flags, *steps)
        return folder

    def artifacts_in(self, place: ArtifactPlace, reals: "Study | None" = None) -> str:
        """Return the folder of the artifacts of a place.

        They are deviations from the reals of another benchmark if that is given.
        """
        source = reals or self
        beside = "" if source is self else "-other-reals"
        folder = self.place("artifacts", f"{place.kind}{beside}")
        if place.kind in (PLAIN, DEGRADED):
            folder = self.place("artifacts", place.kind)
            spaces = (*LATER, *BASELINES) if place.kind == PLAIN else ("image",)
            target = ["--space", "+".join(spaces)]
            target += BLUR_AND_JPEG if place.kind == DEGRADED else ()
        elif place.kind == DENOISED:
            target = ["--manifold", source.denoiser, "--projector", "denoiser"]
        else:
            projector = {NEAREST: "nearest", TANGENT: "tangent", FEATURES: "none"}[place.kind]
            target = ["--manifold", source.manifolds, "--projector", projector]
        flags = ("--input", self.benchmark, *target, *self.sources)
        self.once(f"artifacts {place.kind}{beside}", compute_artifacts, folder, *flags)
        # A folder of one space is that space's.
        several = storage.exists(storage.join(folder, place.space, "manifest.json"))
        return storage.join(folder, place.space) if several else folder

    def attributor(self, method: ComparedMethod, seed: int, known: Sequence[str] = ()) -> str:
        """Return the folder of a trained method; it knows the sources ``known`` if given."""
        folder = self.place(f"attributors{'-shared' if known else ''}", self.named(method, seed))
        if method.members:
            members = [self.attributor(m, seed + m.later, known) for m in method.members]
            self.once(f"fuse {method.title}, seed {seed}", fuse, folder, *members)
            return folder
        assert method.place is not None
        length = ("--steps", str(self.config.steps), "--seed", str(seed))
        mixed = ("--mixed-share", str(self.config.mixed_share))
        flags = ("--input", self.artifacts_in(method.place), *method.flags, *length, *mixed)
        flags += (*sources_flags(known or self.config.sources), *self.config.audit_flags)
        self.once(f"train {method.title}, seed {seed}", train_attribution, folder, *flags)
        return folder

    def evaluated(
        self,
        method: ComparedMethod,
        seed: int,
        trained: "Study | None" = None,
        reals: "Study | None" = None,
        known: Sequence[str] = (),
    ) -> EvaluationSummary:
        """Return the metrics of a method on this benchmark's test images.

        It may be ``trained`` on another benchmark, and may see deviations from that one's
        ``reals``.
        """
        model = (trained or self).attributor(method, seed, known)
        elsewhere = trained is not None and trained is not self
        kind = "evaluations-trained-elsewhere" if elsewhere else "evaluations"
        kind += "-shared" if known else ""
        kind += "-other-reals" if reals else ""
        flags = ("--input", *self.inputs(method, reals), "--model", model)
        flags += sources_flags(known or self.config.sources)
        flags += ("--other-manifold",) if elsewhere and reals is None else ()
        where = self.place(kind, self.named(method, seed))
        return self.once(f"evaluate {method.title}, seed {seed}", evaluate, where, *flags)

    def evaluation(self, title: str, seed: int) -> str:
        """Return the folder of an evaluation by the name of its method."""
        return self.place("evaluations", f"{title}-seed{seed}")

    def inputs(self, method: ComparedMethod, reals: "Study | None" = None) -> list[str]:
        """Return the folders of artifacts that a method reads."""
        return [self.artifacts_in(place, reals) for place in method.places]

    def seeds(self, method: ComparedMethod) -> Sequence[int]:
        """Return the seeds of its trainings; one in closed form depends on none."""
        return self.config.seeds[:1] if method.closed else self.config.seeds

    def named(self, method: ComparedMethod, seed: int) -> str:
        """Return the name of a method's folders."""
        name = method.name.partition("@")[0] if not method.members else method.name
        return f"{name}-seed{seed}"


def sources_flags(names: Sequence[str]) -> tuple[str, ...]:
    """Return the option that names the sources that a classifier learns; none for all."""
    return ("--sources", *names) if names else ()
