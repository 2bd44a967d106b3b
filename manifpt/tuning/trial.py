"""One trial: artifacts from the cache, then Ray Train, a leg at a time.

A leg ends where the scheduler may stop the trial: at an epoch of its rungs, after a seed, or when a
population exchanges weights. Nothing runs between legs, so a trial that is stopped leaves no worker
behind. Each leg is a step of Ray Tune's.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import ray
import torch
from ray import tune

from manifpt import storage
from manifpt.attribution.model.loop import TrainingState
from manifpt.attribution.model.train import AttributorControl, train_attributor
from manifpt.audit.training_audit import UNAUDITED, Settings
from manifpt.engine import pipeline, pools, session
from manifpt.errors import ManifptError
from manifpt.nets import training
from manifpt.nets.training import STATE, silent, state_of
from manifpt.tuning.cache import CachedArtifacts
from manifpt.tuning.rate import attribution_rate
from manifpt.tuning.search_space import SearchSpace, TrialSettings, Value
from manifpt.tuning.trial_format import LegResult

ACCURACY: Final = "accuracy"
SECONDS = 24 * 3600.0  # the longest wait of a trial
# Memory of a trial's own process and of Ray Train's controller; 388 and 493 MiB were measured.
PROCESS_MEMORY = 2**30


def trial_memory(num_workers: int) -> float:
    """Return the bytes that a trial takes: its own process, its workers, and a reader."""
    workers = num_workers * training.WORKER_MEMORY
    return float(PROCESS_MEMORY + workers + pipeline.READER_MEMORY)


@dataclass(frozen=True)
class Sweep:
    """The settings that all trials of a sweep share.

    ``rungs`` are the epochs at which a trial may be stopped; ``rate_of`` are images to measure
    images/s on, or none. In a ``population`` settings change between legs. ``audit`` has the
    verdict of the audit before the trials.
    """

    space: SearchSpace
    output: str
    content: str
    share: dict[str, float]
    num_workers: int
    seeds: tuple[int, ...] = ()
    rungs: tuple[int, ...] = ()
    rate_of: tuple[str, ...] = ()
    population: bool = False
    audit: Settings = UNAUDITED

    @property
    def own_memory(self) -> dict[str, float]:
        """The memory of a trial's own process, by Ray's name; empty if there is no room for it.

        Ray Train places the workers in a group of their own, which holds their CPUs and GPUs. If
        the process held them, too, each would be taken twice.
        """
        return {"memory": float(PROCESS_MEMORY)} if "memory" in self.share else {}

    def bundles(self) -> list[dict[str, float]]:
        """Return the resources of a trial: its workers, a reader, and its own process."""
        gpus, cpus = self.share.get("GPU", 0.0), self.share["CPU"]
        each = {"CPU": min(1.0, cpus / (self.num_workers + 1))}
        worker = each | {"GPU": gpus / self.num_workers}
        reader, own = dict(each), [self.own_memory] if self.own_memory else []
        if own:
            worker["memory"], reader["memory"] = training.WORKER_MEMORY, pipeline.READER_MEMORY
        return [*[worker] * self.num_workers, reader, *own]

    def key(self, settings: TrialSettings) -> str:
        """Return the name of a trial: a hash of all settings that decide it."""
        made_of = [settings.model_dump(), list(self.seeds), self.content]
        return storage.digest(made_of)[:12]

    def folder(self, trial: str) -> str:
        """Return the folder of a trial."""
        return storage.join(self.output, "trials", trial)

    def legs(self, epochs: int) -> list[tuple[int, int]]:
        """Return (seed's place, epoch) at which legs end."""
        if len(self.seeds) > 1:
            return [(n, epochs) for n in range(len(self.seeds))]
        return [(0, epoch) for epoch in (*(r for r in self.rungs if r < epochs), epochs)]


@dataclass
class TrialProgress:
    """The progress of a trial: its best validation accuracies by seed, and rows of its epochs."""

    made: CachedArtifacts
    seconds: float = 0.0
    epoch: int = 0
    best: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    reported: int = 0
    state: TrainingState | None = None


class Trial(tune.Trainable):  # type: ignore[misc]
    """The trainable of Ray Tune; ``config`` are the choices of the search space."""

    def setup(self, config: Mapping[str, Value], sweep: Sweep, cache: Any) -> None:
        """Limit this process to its share of the cluster, and find the work that is left."""
        session.start()
        pools.limit(sweep.share)
        self.sweep, self.cache = sweep, cache
        self.settings = sweep.space.settings(config)
        self.name = self.trial_id if sweep.population else sweep.key(self.settings)
        self.legs = sweep.legs(self.settings.epochs)
        self.progress: TrialProgress | None = None
        self.start: str | None = None
        self.earlier = 0

    def step(self) -> LegResult:
        """Run a leg; return its metrics."""
        started = time.monotonic()
        if self.progress is None:
            asked = self.cache.artifacts.remote(self.settings)
            self.progress = TrialProgress(ray.get(asked, timeout=SECONDS), reported=self.earlier)
        return self._leg(self.progress, started)

    def _leg(self, progress: TrialProgress, started: float) -> LegResult:
        number, until = self.legs[min(self.iteration, len(self.legs) - 1)]
        seed = self.sweep.seeds[number] if self.sweep.seeds else self.settings.seed
        settings = self.settings.model_copy(update={"seed": seed})
        folder = self._folder(seed)
        control = AttributorControl(
            num_workers=self.sweep.num_workers,
            report=silent,
            audit=self.sweep.audit,
            until=until,
            start=self.start,
        )
        manifest = train_attributor(progress.made.uris, folder, settings.training, control=control)
        del progress.best[number:], progress.losses[number:]
        progress.best.append(manifest["validation_accuracy"])
        progress.losses.append(manifest["validation_loss"])
        progress.state = None
        if "state" in manifest:
            progress.state = manifest["state"]
        progress.epoch = len(manifest["history"])
        progress.seconds += time.monotonic() - started
        ended = progress.state is None and number + 1 == max(1, len(self.sweep.seeds))
        return self._row(progress, manifest["history"], folder, ended=ended)

    def _folder(self, seed: int) -> str:
        """Return the folder of a leg's training; it differs if weights come from another trial."""
        parts = [f"seed{seed}"]
        if self.start:
            parts.append(storage.digest([self.start, self.settings.model_dump()])[:12])
        return storage.join(self.sweep.folder(self.name), *parts)

    def _row(
        self, progress: TrialProgress, history: list[dict[str, float]], folder: str, *, ended: bool
    ) -> LegResult:
        several = len(self.sweep.seeds) > 1
        row: LegResult = {
            "accuracy": sum(progress.best) / len(progress.best),
            "accuracies": list(progress.best),
            "loss": sum(progress.losses) / len(progress.losses),
            # The scheduler counts these: epochs, or seeds.
            "progress": len(progress.best) if several else progress.epoch,
            "epochs": progress.epoch,
            "training_seconds": progress.seconds,
            "embedded": progress.made.embedded,
            "made": progress.made.steps,
            "history": [] if several else history[progress.reported :],
            "attributor": folder,
            "key": self.name,
            "settings": self.settings.model_dump(mode="json"),
            "ended": ended,
            "done": ended,
        }
        progress.reported = len(history)
        if ended and self.sweep.rate_of:
            row["images_per_second"] = attribution_rate(folder, self.sweep.rate_of)
        return row

    def save_checkpoint(self, checkpoint_dir: str) -> str:
        """Write the state after the last leg: in a population, others go on from it."""
        if self.progress is not None and self.progress.state is not None:
            torch.save(self.progress.state, Path(checkpoint_dir) / STATE)
        return checkpoint_dir

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from another trial's state, with this one's settings."""
        file = Path(checkpoint) / STATE
        if not file.exists():
            raise ManifptError("a population exchanges weights only between legs of a training")
        data = file.read_bytes()
        place = storage.join(self.sweep.folder(self.name), f"start-{self.iteration}.pt")
        storage.write_bytes(place, data)
        self.start, self.earlier = place, state_of(data)["epoch"]
