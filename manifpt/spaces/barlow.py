"""The training loop of an encoder in each worker: epochs of Barlow Twins on a stream of views.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021. The
loss and the projection head are lightly's. The paper's optimiser, LARS, is for batches of
thousands; this is AdamW. Correlations are averaged over workers; the means and variances that
they, and batch normalisation, subtract and divide by are those of each worker's own share.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from lightly.loss.barlow_twins_loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor, nn

from manifpt import storage
from manifpt.engine.scaling import threads_here
from manifpt.nets import training
from manifpt.nets.backbone import build_backbone, for_training
from manifpt.nets.device import device_and_precision

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NOW = "_now.json"


@dataclass(frozen=True)
class PretrainingSettings:
    """The settings of a pretraining; ``rows`` is the number of reals to train on."""

    backbone: str
    stem: str
    size: int
    dimension: int
    rows: int
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    projector_width: int
    seed: int


class PretrainingState(TypedDict):
    """The state after an epoch, as torch writes it: weights by name, and a row an epoch."""

    trunk: dict[str, Tensor]
    head: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    history: list[dict[str, float]]
    precision: str


class PretrainLoopConfig(training.LoopConfig):
    """The configuration of ``pretrain_loop``; two numbers of images are those of its batches."""

    settings: PretrainingSettings
    shuffle_rows: int
    validation_batch: int


class BarlowTwins(nn.Module):
    """An encoder and a projection head, which is used only in training."""

    def __init__(self, settings: PretrainingSettings) -> None:
        super().__init__()
        width = settings.projector_width
        self.trunk = build_backbone(settings.backbone, None, 3, settings.stem)
        self.head = BarlowTwinsProjectionHead(settings.dimension, width, width)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projections, B x width, of two views, each B x 3 x S x S."""
        # Both in one call: DistributedDataParallel wants one forward pass for each backward one.
        return self.head(self.trunk(first)), self.head(self.trunk(second))


class Pretrainer:
    """Network, optimiser and schedule of one worker."""

    def __init__(
        self, settings: PretrainingSettings, rank: int, workers: int, threads: int
    ) -> None:
        from ray.train.torch import prepare_model

        self.settings, self.rank = settings, rank
        self.device, self.precision = device_and_precision()
        if self.device == "cpu":
            torch.set_num_threads(threads)
        torch.manual_seed(settings.seed)
        network: Any = for_training(BarlowTwins(settings))
        self.network = network.to(memory_format=torch.channels_last)
        self.parallel: nn.Module = prepare_model(self.network)
        self.loss = BarlowTwinsLoss(gather_distributed=workers > 1)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.per_worker = settings.batch_size // workers
        self.epoch_steps = settings.rows // workers // self.per_worker
        steps = settings.epochs * self.epoch_steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: training.warm_cosine(step, steps)
        )
        self.history: list[dict[str, float]] = []

    def _images(self, views: np.ndarray) -> Tensor:
        """Return B x 3 x S x S uint8 views as inputs of the network."""
        images = torch.from_numpy(views).to(self.device, memory_format=torch.channels_last)
        mean, std = (torch.tensor(v, device=self.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        return (images.float() / 255 - mean) / std

    def _loss(self, network: nn.Module, batch: dict[str, np.ndarray], loss: nn.Module) -> Tensor:
        first, second = self._images(batch["first"]), self._images(batch["second"])
        with torch.autocast(self.device, self.precision, enabled=self.precision is not None):
            one, other = network(first, second)
        value: Tensor = loss(one.float(), other.float())
        return value

    def train(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, float]:
        """One epoch; return its mean loss a step."""
        self.parallel.train()
        # For networks with dropout.
        torch.manual_seed(self.settings.seed * 1_000_003 + len(self.history) * 1009 + self.rank)
        total = steps = rows = 0.0
        for batch in batches:
            loss = self._loss(self.parallel, batch, self.loss)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += float(loss.detach())
            steps += 1
            rows += len(batch["first"])
        total, steps, rows = training.add_up([total, steps, rows], self.device)
        return {"train_loss": total / max(1.0, steps), "train_rows": rows}

    @torch.inference_mode()
    def validate(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, float]:
        """Return the mean loss on the reals held out, always the same views of them.

        Each worker measures all of them: correlations of views are those of the whole batch. With
        fewer reals than a batch of the training the loss is larger, since chance correlations grow
        as batches shrink.
        """
        self.network.eval()
        losses = [float(self._loss(self.network, batch, BarlowTwinsLoss())) for batch in batches]
        return {"validation_loss": sum(losses) / len(losses)}

    def save(self, folder: str) -> None:
        """Write the state for the next epoch."""
        state: PretrainingState = {
            "trunk": self.network.trunk.state_dict(),
            "head": self.network.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "precision": str(self.precision or torch.float32).removeprefix("torch."),
        }
        torch.save(state, Path(folder) / training.STATE)

    def restore(self, folder: str) -> None:
        """Go on from a state of ``save``."""
        state: PretrainingState = training.checkpoint_state(folder)
        self.network.trunk.load_state_dict(state["trunk"])
        self.network.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = state["history"]


def pretrain_loop(config: PretrainLoopConfig) -> None:
    """Train all epochs; report each with a checkpoint. Ray Train calls this."""
    import ray.train

    settings = config["settings"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    threads = threads_here(config["threads"])
    trainer = Pretrainer(settings, rank, context.get_world_size(), threads)
    earlier = ray.train.get_checkpoint()
    if earlier:
        with earlier.as_directory() as folder:
            trainer.restore(folder)
    train = ray.train.get_dataset_shard("train")
    validation = ray.train.get_dataset_shard("validation")
    epochs = range(len(trainer.history), settings.epochs)
    pace = training.Pace(config, trainer.epoch_steps * len(epochs), rank)
    for epoch in epochs:
        if rank == 0:
            # The tasks that draw views can learn the epoch from storage only. None starts before
            # all workers ask for their batches, this one after writing.
            storage.write_json(storage.join(config["epochs_uri"], NOW), {"epoch": epoch})
        batches = train.iter_batches(
            batch_size=trainer.per_worker,
            batch_format="numpy",
            drop_last=True,
            local_shuffle_buffer_size=config["shuffle_rows"],
            local_shuffle_seed=settings.seed * 1_000_003 + epoch,
        )
        row = trainer.train(pace.counted(batches))
        held_out = validation.iter_batches(
            batch_size=config["validation_batch"], batch_format="numpy", drop_last=True
        )
        row |= trainer.validate(iter(held_out))
        trainer.history.append(row)
        training.end_epoch(row, epoch, trainer.save, config, resumed=bool(earlier))
