"""What each training worker runs: epochs over a stream of artifacts, with early stopping.

An epoch's randomness comes from (seed, epoch, rank) alone, so an epoch repeated after a crash is
the epoch that would have been.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from manifpt import training
from manifpt.attribution.network import AttributionNetwork
from manifpt.device import device_and_precision


@dataclass(frozen=True)
class Settings:
    """All that decides a training, besides the data."""

    backbone: str
    stem: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rows: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    seed: int


@dataclass
class Standing:
    """How far a training is: epochs done, the best of them, and whether it has stopped."""

    epoch: int = 0
    best_epoch: int = -1
    best: tuple[float, float] = (-1.0, -math.inf)
    history: list[dict[str, float]] = field(default_factory=list)

    def judge(self, row: dict[str, float]) -> bool:
        """Add an epoch's row; return whether it is the best by accuracy, then by loss."""
        self.history.append(row)
        score = (row["validation_accuracy"], -row["validation_loss"])
        better = score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch
        self.epoch += 1
        return better

    def stopped(self, settings: Settings) -> bool:
        """Tell whether the last epoch is reached, or patience is spent."""
        waited = self.epoch - 1 - self.best_epoch
        return self.epoch >= settings.epochs or waited >= settings.patience > 0


class Trainer:
    """Network, optimiser and schedule of one worker."""

    def __init__(self, settings: Settings, rank: int, workers: int, threads: int) -> None:
        from ray.train.torch import prepare_model

        self.settings, self.rank, self.workers = settings, rank, workers
        self.device, self.precision = device_and_precision()
        if self.device == "cpu":
            torch.set_num_threads(threads)
        torch.manual_seed(settings.seed)
        self.network = AttributionNetwork(
            settings.backbone,
            len(settings.classes),
            settings.shape,
            settings.stem,
            list(settings.mean),
            list(settings.std),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parallel: nn.Module = prepare_model(self.network)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.steps = settings.epochs * max(1, settings.rows // settings.batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.standing = Standing()
        self.best_weights = self._weights()

    def _rate(self, step: int) -> float:
        return training.warm_cosine(step, self.steps)

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}

    def _batch(self, batch: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
        artifacts = torch.from_numpy(batch["artifact"]).float()
        artifacts = artifacts.reshape(-1, *self.settings.shape)
        return (
            artifacts.to(self.device, memory_format=torch.channels_last, non_blocking=True),
            torch.from_numpy(batch["label"]).to(self.device, non_blocking=True),
        )

    def _forward(self, artifacts: Tensor) -> Tensor:
        with torch.autocast(self.device, self.precision, enabled=self.precision is not None):
            logits: Tensor = self.parallel(artifacts)
        return logits.float()

    def train(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, float]:
        """One epoch; artifacts are mirrored at random, every class alike."""
        self.parallel.train()
        torch.manual_seed(self.settings.seed * 1_000_003 + self.standing.epoch * 1009 + self.rank)
        loss_sum = rows = 0.0
        for batch in batches:
            artifacts, labels = self._batch(batch)
            mirrored = torch.rand(len(artifacts)) < 0.5
            artifacts[mirrored] = artifacts[mirrored].flip(-1)
            loss = cross_entropy(self._forward(artifacts), labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            loss_sum += float(loss.detach()) * len(labels)
            rows += len(labels)
        loss_sum, rows = self._sum([loss_sum, rows])
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
            logits = self.network(artifacts).float()
            loss_sum += float(cross_entropy(logits, labels, reduction="sum"))
            right += float((logits.argmax(1) == labels).sum())
            rows += len(labels)
        loss_sum, right, rows = self._sum([loss_sum, right, rows])
        return {
            "validation_loss": loss_sum / max(1.0, rows),
            "validation_accuracy": right / max(1.0, rows),
            "validation_rows": rows,
        }

    def _sum(self, values: list[float]) -> list[float]:
        return training.add_up(values, self.device)

    def close_epoch(self, row: dict[str, float]) -> None:
        """Judge the epoch, and keep its weights if it is the best."""
        if self.standing.judge(row):
            self.best_weights = self._weights()

    def save(self, folder: str) -> None:
        """Write all that the next epoch needs, and the best weights."""
        state = {
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

    def restore(self, folder: str) -> None:
        """Go on from what ``save`` wrote."""
        state = training.load_state(folder)
        self.network.load_state_dict(state["network"])
        self.best_weights = state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        best = (state["best"][0], state["best"][1])
        self.standing = Standing(state["epoch"], state["best_epoch"], best, state["history"])


def train_loop(config: dict[str, Any]) -> None:
    """Train until stopped; report each epoch with a checkpoint. Ray Train calls this."""
    import ray.train

    settings: Settings = config["settings"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    trainer = Trainer(settings, rank, workers, config["threads"])
    earlier = ray.train.get_checkpoint()
    if earlier:
        with earlier.as_directory() as folder:
            trainer.restore(folder)
    train = ray.train.get_dataset_shard("train")
    validation = ray.train.get_dataset_shard("validation")
    per_worker = max(1, settings.batch_size // workers)
    while not trainer.standing.stopped(settings):
        epoch = trainer.standing.epoch
        batches = train.iter_batches(
            batch_size=per_worker,
            batch_format="numpy",
            # A last batch of one row has no variance for batch normalisation.
            drop_last=settings.rows // workers > per_worker,
            local_shuffle_buffer_size=config["shuffle_rows"],
            local_shuffle_seed=settings.seed * 1_000_003 + epoch,
        )
        row = trainer.train(iter(batches))
        row |= trainer.validate(iter(validation.iter_batches(batch_size=512, batch_format="numpy")))
        trainer.close_epoch(row)
        training.end_epoch(row, epoch, trainer.save, config, resumed=bool(earlier))
