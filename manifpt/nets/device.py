"""The one place that asks torch for a GPU."""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import threadpoolctl
import torch

from manifpt.engine.scaling import threads_here
from manifpt.engine.session import Pool
from manifpt.errors import ManifptError

# On a CPU, more images at once are no faster, and batches that are no multiple of 16 get kernels
# whose rounding is another (oneDNN, torch 2.14; all multiples gave the same bits).
CPU_BATCH, CPU_STEP = 64, 16

# Set where GPUs are numbers alone, as in `cluster.local`: the CPU does their work.
LOGICAL = "MANIFPT_LOGICAL_GPUS"

T = TypeVar("T")


def may_use_gpu() -> bool:
    """Tell whether this process may use the GPUs that it sees.

    Ray (2.60) hides none from a process that it gave none: those of CPU stages, and the driver.
    """
    import ray

    return not ray.is_initialized() or bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])


def device_and_precision() -> tuple[str, Any]:
    """Return the device of this process and the dtype to train in (None where none pays)."""
    if not (may_use_gpu() and torch.cuda.is_available()):
        _check_given()
        # On CPUs without the instructions bfloat16 is many times slower. With them (Zen 4, torch
        # 2.14) it is 1.6 times faster, but the gradient of kernel taps that meet nothing but
        # padding, as in a 3 x 3 convolution of 1 x 1 maps, is memory that was never written.
        return "cpu", None
    # What is said to be float32 is: by default cuDNN rounds what it convolves to TF32's 11 bits.
    torch.backends.cudnn.allow_tf32 = False
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return "cuda", torch.bfloat16 if bfloat16 else None


def _check_given() -> None:
    """Raise if Ray gave this process a GPU, though torch can't see it."""
    import ray

    if not ray.is_initialized() or os.environ.get(LOGICAL):
        return
    given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if given:
        raise ManifptError(
            f"Ray gave GPU {', '.join(given)}, and torch sees none on {socket.gethostname()} (CUDA "
            f"of torch: {torch.version.cuda or 'none'}); check the node's driver and "
            "NVIDIA_VISIBLE_DEVICES, or take --num-gpus-per-actor 0"
        )


def precision_of(asked: str, pool: Pool) -> str:
    """Return what an embedding network computes in; ``auto`` is float16 on GPUs, else float32."""
    return asked if asked != "auto" else "float16" if pool.num_gpus else "float32"


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Limit NumPy, SciPy, FAISS and torch to ``count`` threads in the block, for this thread.

    It is at most the CPUs of the node. For tasks, which share a process with others. Once torch has
    been told a number, its MKL heeds no other's, so both are told.
    """
    before, count = torch.get_num_threads(), threads_here(count)
    try:
        with threadpoolctl.threadpool_limits(count):
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)


def in_batches(
    network: Callable[[slice], T], rows: int, most: int, threads: int | None = None
) -> list[T]:
    """Return what a network makes of each batch of at most ``most`` of its rows, in order.

    On a CPU each thread that the caller may use has a batch of its own. Threads that share each
    layer wait, layer by layer, for the one whose core a reader has: beside one busy process that
    is half as fast on two cores. With ``threads`` 1, as on a GPU, the caller does it alone.
    """
    threads = threads or torch.get_num_threads()
    size = min(most, max(1, -(-rows // (threads * CPU_STEP))) * CPU_STEP)
    batches = [slice(start, start + size) for start in range(0, rows, size)]
    if threads == 1:
        return list(map(network, batches))
    try:
        with ThreadPoolExecutor(threads, "network", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(network, batches))
    finally:
        torch.set_num_threads(threads)  # it is also what threads yet to come start with
