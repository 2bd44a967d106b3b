"""The one place that asks torch for a GPU."""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import threadpoolctl
import torch

from manifpt.engine.pools import Pool
from manifpt.engine.scaling import threads_here
from manifpt.errors import ManifptError

# On a CPU, more images at once are no faster, and batches that are no multiple of 16 get kernels
# with another rounding (oneDNN, torch 2.14; all multiples gave the same bits).
CPU_BATCH, CPU_STEP = 64, 16

# Set if GPUs are logical, as in `cluster.local`: the CPU does their work.
LOGICAL = "MANIFPT_LOGICAL_GPUS"

T = TypeVar("T")


def may_use_gpu() -> bool:
    """Tell whether this process may use the GPUs that it sees.

    Ray (2.60) does not hide GPUs from processes that were given none: CPU stages and the driver.
    """
    import ray

    return not ray.is_initialized() or bool(ray.get_runtime_context().get_accelerator_ids()["GPU"])


def device_and_precision() -> tuple[str, Any]:
    """Return the device of this process and the dtype of mixed precision (None without)."""
    if not (may_use_gpu() and torch.cuda.is_available()):
        _check_given()
        return "cpu", None
    # Real float32: by default cuDNN rounds inputs of convolutions to TF32's 11 bits.
    torch.backends.cudnn.allow_tf32 = False
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return "cuda", torch.bfloat16 if bfloat16 else None


def cpu_precision() -> torch.dtype | None:
    """Return the dtype in which this CPU trains small convolutions the fastest (None: float32).

    It is bfloat16 with AMX, where a step takes half or a third of the time. Without AMX it gains
    nothing, or takes twice the time. It is not fit for every network: the gradient of kernel taps
    that meet nothing but padding, as in a 3 x 3 convolution of 1 x 1 maps, is memory that was never
    written (torch 2.14).
    """
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else None


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
    """Return the precision of an embedding network; ``auto`` is float16 on GPUs, else float32."""
    return asked if asked != "auto" else "float16" if pool.num_gpus else "float32"


@contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Limit NumPy, SciPy, FAISS and torch to ``count`` threads in the block, for this thread.

    The number is at most the CPUs of the node. It is for tasks, which share a process with others.
    After torch's own setting, its MKL ignores other settings, so both are set.
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
    """Return a network's results for batches of at most ``most`` rows, in order.

    On a CPU each thread of the caller has a batch of its own. If threads shared each layer, they
    would wait, layer by layer, for a thread whose core a reader uses: beside one busy process that
    is half as fast on two cores. With ``threads`` 1, as on a GPU, the calling thread does all.
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
        torch.set_num_threads(threads)  # threads that are started later begin with it, too
