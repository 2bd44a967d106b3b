"""The training loop of each worker: epochs over a stream of artifacts, with early stopping.

An epoch's randomness comes from (seed, epoch, rank) alone, so an epoch repeated after a crash is
the epoch that would have been.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, nll_loss

from manifpt import storage
from manifpt.artifacts.branches import artifact_column
from manifpt.attribution.model.augmentation import CUTMIX, augmented, cut_mixed
from manifpt.attribution.model.compact import COMPACT
from manifpt.attribution.model.network import AttributionNetwork, Design
from manifpt.baselines.dnadet import COUNT, PATCHES, random_patches, supervised_contrast
from manifpt.engine.scaling import threads_here
from manifpt.nets import training
from manifpt.nets.backbone import for_training
from manifpt.nets.device import cpu_precision, device_and_precision

# The least side of maps whose strided convolutions have no tap that meets padding alone.
LEAST_SIDE = 8


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training; ``moments`` are mean and standard deviation of each input.

    An epoch is ``passes`` over the ``rows``. ``movable`` says of each input whether its maps are
    images, which may be shifted; other maps are spectra, or counts that no augmentation changes.
    """

    design: Design
    classes: tuple[str, ...]
    moments: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    rows: int
    epochs: int
    passes: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    seed: int
    augment: str
    mixed_share: float
    label_smoothing: float
    movable: tuple[bool, ...]

    @property
    def steps(self) -> int:
        """The steps of the whole training."""
        return self.epochs * self.passes * max(1, self.rows // self.batch_size)


class TrainingState(TypedDict):
    """The state after an epoch, as torch writes it: weights by name, and the standing's fields."""

    network: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    epoch: int
    best_epoch: int
    best: list[float]
    history: list[dict[str, float]]
    precision: str


class TrainLoopConfig(training.LoopConfig):
    """The configuration of ``train_loop``; ``start`` is the file of a state to go on from.

    ``shuffle_rows`` are those of the buffer that shuffles, and ``until`` is the number of epochs.
    """

    settings: TrainingSettings
    shuffle_rows: int
    until: int
    start: str | None


@dataclass
class Standing:
    """The state of a training: epochs done, the best of them, and whether it has stopped."""

    epoch: int = 0
    best_epoch: int = -1
    best: tuple[float, float] = (-1.0, -math.inf)
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, state: TrainingState) -> "Standing":
        """Return the standing in a checkpoint's state."""
        best = (state["best"][0], state["best"][1])
        return cls(state["epoch"], state["best_epoch"], best, state["history"])

    def judge(self, row: dict[str, float]) -> bool:
        """Add an epoch's row; return whether it is the best by accuracy, then by loss."""
        self.history.append(row)
        score = (row["validation_accuracy"], -row["validation_loss"])
        better = score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch
        self.epoch += 1
        return better

    def stopped(self, settings: TrainingSettings) -> bool:
        """Tell whether the last epoch is reached, or patience is spent."""
        waited = self.epoch - 1 - self.best_epoch
        return self.epoch >= settings.epochs or waited >= settings.patience > 0


def precision_on_cpu(design: Design) -> torch.dtype | None:
    """Return the dtype of mixed precision for a design on this CPU; None for float32.

    Only compact networks have another one, and only if all taps of their kernels meet pixels.
    """
    trained = [head for head in design.heads if head.is_trained]
    fit = all(
        head.trunk == COMPACT and min(design.shapes[head.reads][1:]) >= LEAST_SIDE
        for head in trained
    )
    return cpu_precision() if fit else None


class Trainer:
    """Network, optimiser and schedule of one worker."""

    def __init__(self, settings: TrainingSettings, rank: int, workers: int, threads: int) -> None:
        from ray.train.torch import prepare_model

        self.settings, self.rank, self.workers = settings, rank, workers
        self.device, self.precision = device_and_precision()
        if self.device == "cpu":
            torch.set_num_threads(threads)
            self.precision = precision_on_cpu(settings.design)
        torch.manual_seed(settings.seed)
        self.network = AttributionNetwork(settings.design)
        for branch, head in zip(self.network.branches, settings.design.heads, strict=True):
            branch.normalise_by(*settings.moments[head.reads])  # type: ignore[operator]
        self.network = for_training(self.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parallel: nn.Module = prepare_model(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.standing = Standing()
        self.best_weights = self._weights()

    def _rate(self, step: int) -> float:
        return training.warm_cosine(step, self.settings.steps)

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}

    def _batch(self, batch: dict[str, np.ndarray]) -> tuple[list[Tensor], Tensor]:
        """Return the artifacts of each input, and the labels, on the device."""
        artifacts = []
        for n, shape in enumerate(self.settings.design.shapes):
            values = torch.from_numpy(batch[artifact_column(n)]).float().reshape(-1, *shape)
            layout = torch.channels_last if len(shape) == 3 else torch.contiguous_format
            artifacts.append(values.to(self.device, memory_format=layout, non_blocking=True))
        return artifacts, torch.from_numpy(batch["label"]).to(self.device, non_blocking=True)

    def _patch_loss(self, artifacts: list[Tensor], labels: Tensor) -> Tensor:
        """Return the sum over heads of two losses of patches: cross entropy and contrast."""
        settings, given = self.settings, list[Tensor]()
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
            for layer in self.network.last_layers()
        ]
        labels = labels.repeat(COUNT)
        patches = random_patches(artifacts, settings.movable)
        with torch.autocast(self.device, self.precision, enabled=self.precision is not None):
            logits: Tensor = self.parallel(patches)
        for hook in hooks:
            hook.remove()
        each = [
            cross_entropy(column, labels, label_smoothing=settings.label_smoothing)
            + supervised_contrast(features, labels)
            for column, features in zip(logits.float().unbind(1), given, strict=True)
        ]
        return torch.stack(each).sum()

    def _loss(self, artifacts: list[Tensor], labels: Tensor) -> Tensor:
        """Return the sum of the heads' cross entropies: with late fusion, each learns by itself."""
        if self.settings.augment == PATCHES:
            return self._patch_loss(artifacts, labels)
        settings, others, shares = self.settings, labels, [1.0] * len(artifacts)
        if settings.augment == CUTMIX and float(torch.rand(())) < settings.mixed_share:
            partners = torch.randperm(len(labels))
            others = labels[partners]
            artifacts, shares = cut_mixed(artifacts, settings.movable, partners)
        with torch.autocast(self.device, self.precision, enabled=self.precision is not None):
            logits: Tensor = self.parallel(artifacts)
        smooth = settings.label_smoothing
        each = []
        # With early fusion there is one column of logits, and all inputs have the same share.
        for head, column in zip(settings.design.heads, logits.float().unbind(1), strict=False):
            share = shares[head.reads]
            first, second = (
                cross_entropy(column, truth, label_smoothing=smooth) for truth in (labels, others)
            )
            each.append(share * first + (1 - share) * second)
        return torch.stack(each).sum()

    def train(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, float]:
        """One epoch; maps are augmented at random, every class and every space alike."""
        self.parallel.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.standing.epoch * 1009 + self.rank)
        loss_sum = rows = 0.0
        for batch in batches:
            artifacts, labels = self._batch(batch)
            artifacts = augmented(artifacts, self.settings.augment, self.settings.movable)
            loss = self._loss(artifacts, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            loss_sum += float(loss.detach()) * len(labels)
            rows += len(labels)
        loss_sum, rows = training.add_up([loss_sum, rows], self.device)
        return {"train_loss": loss_sum / max(1.0, rows), "train_rows": rows}

    @torch.inference_mode()
    def validate(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, float]:
        """Loss and accuracy over all validation rows, of which each worker takes its share."""
        self.network.eval()
        loss_sum = right = rows = 0.0
        for batch in batches:
            mine = {name: values[self.rank :: self.workers] for name, values in batch.items()}
            if len(mine["label"]) == 0:
                continue
            artifacts, labels = self._batch(mine)
            fused = self.network.fuse(self.network(artifacts))
            loss_sum += float(nll_loss(fused, labels, reduction="sum"))
            right += float((fused.argmax(1) == labels).sum())
            rows += len(labels)
        loss_sum, right, rows = training.add_up([loss_sum, right, rows], self.device)
        return {
            "validation_loss": loss_sum / max(1.0, rows),
            "validation_accuracy": right / max(1.0, rows),
            "validation_rows": rows,
        }

    def close_epoch(self, row: dict[str, float]) -> None:
        """Judge the epoch, and keep its weights if it is the best."""
        if self.standing.judge(row):
            self.best_weights = self._weights()

    def save(self, folder: str) -> None:
        """Write the state for the next epoch, and the best weights."""
        state: TrainingState = {
            "network": self._weights(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.standing.epoch,
            "best_epoch": self.standing.best_epoch,
            "best": list(self.standing.best),
            "history": self.standing.history,
            "precision": str(self.precision or torch.float32).removeprefix("torch."),
        }
        torch.save(state, Path(folder) / training.STATE)

    def restore(self, state: TrainingState) -> None:
        """Go on from a state of ``save``, at this training's own rate and decay."""
        self.network.load_state_dict(state["network"])
        self.best_weights = state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.schedule.base_lrs = [self.settings.learning_rate]
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.settings.weight_decay
            group["initial_lr"] = self.settings.learning_rate
            group["lr"] = self.settings.learning_rate * self._rate(self.schedule.last_epoch)
        self.standing = Standing.of(state)


def train_loop(config: TrainLoopConfig) -> None:
    """Train until stopped; report each epoch with a checkpoint. Ray Train calls this."""
    import ray.train

    settings = config["settings"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    trainer = Trainer(settings, rank, workers, threads_here(config["threads"]))
    earlier = ray.train.get_checkpoint()
    if earlier:
        with earlier.as_directory() as folder:
            trainer.restore(training.checkpoint_state(folder))
    elif config["start"]:
        trainer.restore(training.state_of(storage.read_bytes(config["start"])))
    train = ray.train.get_dataset_shard("train")
    validation = ray.train.get_dataset_shard("validation")
    per_worker = max(1, settings.batch_size // workers)
    epochs_left = config["until"] - trainer.standing.epoch
    pace = training.Pace(config, settings.steps * epochs_left // settings.epochs, rank)

    while not trainer.standing.stopped(settings) and trainer.standing.epoch < config["until"]:
        epoch = trainer.standing.epoch
        batches = (
            batch
            for number in range(settings.passes)
            for batch in train.iter_batches(
                batch_size=per_worker,
                batch_format="numpy",
                # A last batch of one row has no variance for batch normalisation.
                drop_last=settings.rows // workers > per_worker,
                local_shuffle_buffer_size=config["shuffle_rows"],
                local_shuffle_seed=settings.seed * 1_000_003 + epoch * settings.passes + number,
            )
        )
        row = trainer.train(pace.counted(batches))
        row |= trainer.validate(iter(validation.iter_batches(batch_size=512, batch_format="numpy")))
        trainer.close_epoch(row)
        training.end_epoch(row, epoch, trainer.save, config, resumed=bool(earlier))
