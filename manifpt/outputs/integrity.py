"""Read files of earlier jobs, and check that they are whole and have the expected hash.

Tensors and arrays are read from files that hold nothing else, so that no code is executed.
"""

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifpt import storage
from manifpt.errors import DamageError


def checked_bytes(uri: str, sha256: str | None, remedy: str) -> bytes:
    """Return a file's content; raise DamageError if it has another hash than ``sha256``."""
    data = storage.read_bytes(uri)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DamageError(f"{uri}: differs from its manifest's hash; {remedy}")
    return data


def torch_object(data: bytes, uri: str, remedy: str) -> Any:
    """Return an object that ``torch.save`` wrote, on the CPU.

    A file that holds anything but tensors raises DamageError.
    """
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception:  # torch, pickle and zipfile raise many kinds
        raise DamageError(f"{uri}: not a PyTorch file of tensors alone; {remedy}") from None


def load_state(network: torch.nn.Module, data: bytes, uri: str, remedy: str) -> None:
    """Load a network's state from the bytes of a file.

    A state that does not fit, or holds numbers that are not finite, raises DamageError.
    """
    state = torch_object(data, uri, remedy)
    if not _is_state(state):
        raise DamageError(f"{uri}: holds no tensors by name; {remedy}")
    if not all(t.isfinite().all() for t in state.values() if t.is_floating_point()):
        raise DamageError(f"{uri}: holds numbers that are not finite; {remedy}")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]
        reason = f" ({first[0].strip()[:120]})" if first else ""
        raise DamageError(f"{uri}: not the weights of this network{reason}; {remedy}") from None


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(one, Tensor) for name, one in value.items()
    )


def arrays(data: bytes, uri: str, remedy: str) -> dict[str, np.ndarray]:
    """Return the arrays that ``numpy.savez`` wrote; any other content raises DamageError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return dict(file)
    except MemoryError:
        raise
    except Exception:  # numpy, zipfile and zlib raise many kinds
        raise DamageError(f"{uri}: not a file of arrays alone; {remedy}") from None
