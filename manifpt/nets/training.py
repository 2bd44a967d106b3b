"""Code of all trainings: workers, Ray Train with a checkpoint an epoch, and the log."""

import io
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import torch

from manifpt import storage
from manifpt.engine import pools, scaling
from manifpt.errors import ManifptError
from manifpt.outputs import claims

if TYPE_CHECKING:
    import ray.data
    import ray.train

EPOCHS = "_epochs"
TRAINING = "_training"
STATE = "state.pt"
# The least number of images of a batch for each worker.
LEAST_SHARE = 8
# Bytes that a worker holds where trainings run side by side, see ``pools.limit``.
WORKER_MEMORY = 2**30
# The file in which a worker says how fast it trains, beside those of epochs.
PACE = "pace.json"
PACE_STEPS = 20

Batch = TypeVar("Batch")
EpochLog = Callable[[dict[str, float], int], None]
Placed = tuple[int, dict[str, float], bool]


class LoopConfig(TypedDict):
    """The entries that ``fit`` adds to the configuration of a loop, see ``TrainingControl``.

    ``epochs_uri`` is the folder of the rows of epochs, ``threads`` are the cores of a worker.
    """

    epochs_uri: str
    die_at: int | None
    threads: int


def silent(_row: dict[str, float], _epoch: int) -> None:
    """Print nothing about an epoch."""


@dataclass(frozen=True)
class TrainingControl:
    """The control of a training, besides its recipe.

    ``demand`` is that of its stages besides Ray Train, which has ``num_workers``; ``terms`` allow
    to replace an output; ``report`` is called with each epoch. ``die_at`` kills a worker after that
    epoch, once: a drill for tests and operators.
    """

    demand: pools.Demand = pools.ANY
    terms: claims.Terms = claims.AS_IS
    num_workers: int | None = None
    report: EpochLog = silent
    die_at: int | None = None

    def workers(self, batch_size: int) -> Placed:
        """Return the workers of the training, see ``workers``."""
        return workers(self.num_workers, self.demand.num_gpus, batch_size)


def workers(num_workers: int | None, num_gpus: float | None, batch_size: int) -> Placed:
    """Return the number of workers, the resources of each, and whether that includes a GPU.

    It is the number that fits, but each worker has some images of a batch.
    """
    has = pools.capacity()
    cpus, gpus = has.get("CPU", 1.0), has.get("GPU", 0.0)
    use_gpu = gpus >= 1 if num_gpus is None else num_gpus > 0
    each_gpu = (num_gpus or 1.0) if use_gpu else 0.0
    room = max(cpus - 1, 0.5)  # a reader needs the rest
    fit = int(gpus / each_gpu) if use_gpu else int(room)
    count = num_workers or max(1, min(fit, batch_size // LEAST_SHARE))
    each_cpu = 1.0 if count <= room else 0.5
    if count * each_cpu > room or count * each_gpu > gpus:
        raise ManifptError(
            f"the cluster is too small: {count} workers of {each_cpu:g} CPU and {each_gpu:g} GPU "
            f"beside a reader do not fit on its {cpus:g} CPU and {gpus:g} GPU; "
            f"ask for fewer --num-workers{pools.GROWS}"
        )
    holds = {"CPU": each_cpu} | ({"GPU": each_gpu} if use_gpu else {})
    if pools.shares_memory():
        holds["memory"] = float(WORKER_MEMORY)
    return count, holds, use_gpu


def warm_cosine(step: int, steps: int) -> float:
    """Return the learning rate's factor: a linear warm-up over 5 % of steps, a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def add_up(values: list[float], device: str) -> list[float]:
    """Add values over all workers, in a worker."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    added: list[float] = total.tolist()
    return added


class Pace:
    """Measures in a worker how long steps take, and lets the driver know once.

    ``steps`` are those left. The first few are not measured, since they prepare kernels.
    """

    def __init__(self, config: LoopConfig, steps: int, rank: int) -> None:
        self.uri = storage.join(config["epochs_uri"], PACE) if rank == 0 else None
        self.steps, self.done, self.began = steps, 0, 0.0

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches; a step is done when the next batch is asked for."""
        for batch in batches:
            yield batch
            self.done += 1
            if self.done == PACE_STEPS:
                self.began = time.monotonic()
            elif self.done == 2 * PACE_STEPS and self.uri is not None:
                seconds = (time.monotonic() - self.began) / PACE_STEPS
                storage.write_json(self.uri, {"steps": self.steps, "seconds": seconds})


def checkpoint_state(folder: str) -> Any:
    """Return a checkpoint's state; the caller declares its type, which depends on the loop."""
    return state_of((Path(folder) / STATE).read_bytes())


def state_of(data: bytes) -> Any:
    """Return the state in a file."""
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


def end_epoch(
    row: dict[str, float],
    epoch: int,
    save: Callable[[str], None],
    config: LoopConfig,
    *,
    resumed: bool,
) -> None:
    """Report an epoch from a worker; the first writes its row and its checkpoint with ``save``.

    ``config`` is the loop's, as ``fit`` gave it; ``resumed`` says that it began at a checkpoint.
    """
    import ray.train

    first = ray.train.get_context().get_world_rank() == 0
    if first:
        storage.write_json(storage.join(config["epochs_uri"], f"{epoch:05d}.json"), row)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if first:
            save(folder)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(row, checkpoint=checkpoint)
    if config["die_at"] == epoch and not resumed:
        os._exit(1)


def print_pace(pace: Mapping[str, float]) -> None:
    """Print how long a training will take, from the pace of its first steps."""
    minutes = pace["steps"] * pace["seconds"] / 60
    text = f"{pace['steps']:.0f} steps of {pace['seconds']:.3f} s, {minutes:.0f} min in all"
    print(f"train: {text}, without validation", file=sys.stderr, flush=True)


@contextmanager
def reported(epochs_uri: str, report: EpochLog) -> Iterator[None]:
    """Report epochs as workers write them, from a thread, while the block waits for them."""
    done = threading.Event()
    seen: set[str] = set()

    def look() -> None:
        found = storage.files_under(epochs_uri) if storage.exists(epochs_uri) else []
        for uri, _ in found:
            if not uri.endswith(".json") or uri in seen:
                continue
            seen.add(uri)
            if uri.endswith(PACE):
                print_pace(storage.read_json(uri))
            else:
                report(storage.read_json(uri), int(storage.base_name(uri)[:5]))

    def watch() -> None:
        while not done.wait(2):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)
        look()


def fit(
    loop: Callable[[Any], None],
    config: Mapping[str, object],
    datasets: dict[str, "ray.data.Dataset"],
    output: str,
    key: str,
    placed: Placed,
    control: TrainingControl,
) -> Any:
    """Run ``loop`` on Ray Train's workers to the end; return the last checkpoint's state.

    The workers share the dataset ``train``, and each reads the whole of the others. ``loop`` gets
    ``config`` with the entries of ``LoopConfig``. If it is started again with the same ``output``
    and ``key``, it goes on after the last checkpoint. The caller declares the type of the state.

    It waits until all workers and a reader fit. The number of workers decides how batches are
    distributed, so the training would differ if it changed with the nodes.
    """
    from ray.train import DataConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    count, holds, use_gpu = placed
    epochs_uri = storage.join(output, EPOCHS)
    storage.remove_files(epochs_uri, re.escape(PACE))
    scaling.wait_for([*[holds] * count, {"CPU": holds["CPU"]}])
    trainer = TorchTrainer(
        loop,
        train_loop_config={
            **config,
            "epochs_uri": epochs_uri,
            "die_at": control.die_at,
            "threads": max(1, int(pools.capacity().get("CPU", 1) / count)),
        },
        datasets=datasets,
        # Splitting takes a process of its own, which a single worker does not need.
        dataset_config=DataConfig(datasets_to_split=["train"] if count > 1 else []),
        scaling_config=ScalingConfig(
            num_workers=count, use_gpu=use_gpu, resources_per_worker=holds
        ),
        run_config=_run_config(output, key),
    )
    with reported(epochs_uri, control.report):
        result = trainer.fit()
    if result.checkpoint is None:
        raise ManifptError("training ended without a checkpoint; see the log above")
    with result.checkpoint.as_directory() as local:
        return checkpoint_state(local)


def _run_config(output: str, key: str) -> "ray.train.RunConfig":
    """Return the place of Ray Train's last checkpoint, and the number of restarts from it."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig

    filesystem, path = storage.arrow_filesystem(storage.join(output, TRAINING))
    return RunConfig(
        name=key[:16],
        storage_path=path,
        storage_filesystem=filesystem,
        checkpoint_config=CheckpointConfig(num_to_keep=1),
        failure_config=FailureConfig(max_failures=3),
    )


def clear(output: str) -> None:
    """Remove the files in ``output`` from which a training goes on."""
    storage.remove_files(storage.join(output, EPOCHS), r"\w+\.json")
    storage.remove_files(storage.join(output, TRAINING), r"[0-9a-f]{16}/.+")
