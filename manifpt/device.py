"""The one place that asks torch for a GPU."""

from typing import Any

import torch

from manifpt.session import Pool

GPU_SECONDS = 300


def device_and_precision() -> tuple[str, Any]:
    """Return the device of this process and the dtype to train in (None where none pays)."""
    if not torch.cuda.is_available():
        # On CPUs without the instructions bfloat16 is many times slower. With them (Zen 4, torch
        # 2.14) it is 1.6 times faster, but the gradient of kernel taps that meet nothing but
        # padding, as in a 3 x 3 convolution of 1 x 1 maps, is memory that was never written.
        return "cpu", None
    return "cuda", torch.bfloat16 if computes_in_bfloat16() else None


def computes_in_bfloat16() -> bool:
    """Tell whether this process has a GPU with instructions for it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def precision_of(asked: str, pool: Pool) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` is the latter on GPUs that compute in it."""
    if asked != "auto":
        return asked
    if not pool.num_gpus:
        return "float32"
    import ray

    there = ray.remote(num_gpus=pool.num_gpus, num_cpus=0)(computes_in_bfloat16)
    return "bfloat16" if ray.get(there.remote(), timeout=GPU_SECONDS) else "float32"
