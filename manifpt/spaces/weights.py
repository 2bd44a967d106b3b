"""Weights of learned spaces: from a file, an encoder of manifpt pretrain_embedding, or torchvision.

Files hold tensors alone, and no code in them is executed.
"""

import hashlib
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manifpt import outputs, storage
from manifpt.errors import DamageError, ManifptError
from manifpt.nets import encoders
from manifpt.nets.backbone import last_layer
from manifpt.outputs.integrity import torch_object

# The normalisation of the ImageNet networks of torchvision, and of Barlow Twins.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DOWNLOAD_SECONDS = 30
WEIGHTS = "weights.pt"
PREFIXES = (
    "",
    "module.",
    "backbone.",
    "module.backbone.",
    "encoder.",
    "module.encoder.",
    "model.",
    "visual.",
)
HUB = "hub"  # as the value of weights it lets timm or open_clip download theirs
SAFETENSORS = ".safetensors"
WRAPPERS = ("state_dict", "model", "model_state_dict")


class WeightsSource(NamedTuple):
    """The place of weights, the facts of their network, and the beginning of their sha256."""

    uri: str
    facts: dict[str, Any]
    sha256: str = ""

    def checked_sha256(self, option: str) -> str:
        """Return the hash of the weights; raise if it differs from the known one."""
        found = storage.sha256(self.uri)
        if not found.startswith(self.sha256):
            raise DamageError(f"{option} {self.uri}: differs from its hash; make or copy it again")
        return found


def find_weights(given: str | None, backbone: str, option: str) -> WeightsSource:
    """Return the source of weights: a file, a folder of pretrain_embedding, or a download."""
    if encoders.library_of(backbone) is not None:
        if given is None:
            raise ManifptError(
                f"{option}: give the file of {backbone}'s weights, local, s3://, gs:// or az://, "
                f"or {HUB} to download them"
            )
        if given == HUB or given.startswith(f"{HUB}:"):
            return _of_hub(backbone, given.partition(":")[2], option)
    if given is None:
        return _downloaded(backbone, option)
    uri = storage.absolute(given)
    manifest = outputs.read(uri)
    if manifest is None:
        if not storage.exists(uri):
            raise ManifptError(f"{option} {given}: no such file; check the path")
        return WeightsSource(uri, {})
    if manifest.get("kind") != "encoder":
        raise ManifptError(f"{option} {given}: holds {manifest.get('kind')}, not an encoder")
    names = ("backbone", "stem", "network_size", "mean", "std")
    if not all(name in manifest for name in names):
        raise DamageError(f"{option} {given}: its manifest is damaged; make the encoder again")
    entry = manifest.get("files", {}).get(WEIGHTS, {})
    facts = {name: manifest[name] for name in names}
    return WeightsSource(storage.join(uri, WEIGHTS), facts, entry.get("sha256", ""))


@contextmanager
def _waiting_at_most(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _downloaded(backbone: str, option: str) -> WeightsSource:
    """Return the file of torchvision's first ImageNet weights, downloaded once a machine."""
    from torchvision import models

    url = next(iter(models.get_model_weights(backbone))).url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rsplit("/", 1)[-1]
    digest = path.stem.rsplit("-", 1)[-1]
    if path.exists():
        return WeightsSource(str(path), {}, digest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _waiting_at_most(DOWNLOAD_SECONDS):
            torch.hub.download_url_to_file(url, str(path), digest, progress=False)
    except (OSError, RuntimeError) as error:
        raise ManifptError(
            f"{option}: torchvision's weights of {backbone} could not be downloaded ({error}); "
            f"give a local file, or an s3://, gs:// or az:// URI, with {option}"
        ) from None
    return WeightsSource(str(path), {}, digest)


def _of_hub(backbone: str, tag: str, option: str) -> WeightsSource:
    """Return the file of the weights that a library downloads, once a machine."""
    size = encoders.preprocessing(backbone, option)["network_size"]
    name = "-".join(filter(None, (backbone.replace(":", "-").replace("/", "-"), tag)))
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}{SAFETENSORS}"
    if not path.exists():
        try:
            network = encoders.build_encoder(backbone, size, tag)
        except Exception as error:  # the hubs' clients raise many kinds
            raise ManifptError(
                f"{option} {HUB}: the weights of {backbone} could not be downloaded "
                f"({str(error).splitlines()[0][:200]}); give a file"
            ) from None
        from safetensors.torch import save

        tensors = {k: v.contiguous().clone() for k, v in network.state_dict().items()}
        storage.write_bytes(str(path), save(tensors))
    return WeightsSource(str(path), {})


def _tensors_of(data: bytes, uri: str) -> Any:
    """Return the content of a file of weights."""
    if not uri.endswith(SAFETENSORS):
        return torch_object(data, uri, "save the network's state_dict()")
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise ManifptError(f"{uri}: needs safetensors; pip install 'manifpt[encoders]'") from None
    try:
        return load(data)
    except SafetensorError as error:
        raise DamageError(f"{uri}: no file of safetensors ({error}); copy it again") from None


def read_weights(uri: str, sha256: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, by name; checkpoints that wrap one are unwrapped."""
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamageError(f"{uri}: its hash is not that of the space's card; copy it again")
    found = _tensors_of(data, uri)
    for name in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    tensors = found if isinstance(found, dict) else {}
    tensors = {str(k): v for k, v in tensors.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ManifptError(f"{uri}: holds no tensors by name; save the network's state_dict()")
    return tensors


def load_into(
    network: nn.Module,
    tensors: dict[str, Tensor],
    uri: str,
    backbone: str,
    heads: Sequence[str] | None = None,
) -> None:
    """Load weights into a network, except its last layer; raise if they are of another network.

    ``heads`` are the names of last layers that it has left out; None for a whole classifier.
    """
    left = tuple(f"{head}." for head in ([last_layer(network)[0]] if heads is None else heads))
    own = network.state_dict()
    wanted = {k for k in own if not k.startswith(left) and "num_batches" not in k}
    prefix = max(PREFIXES, key=lambda p: sum(p + name in tensors for name in wanted))
    given = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    given = {k: v for k, v in given.items() if not k.startswith(left)}
    # Heads and projectors may come along, but not parts of a deeper network of the same kind.
    parts = {name for name, _ in network.named_children()}
    foreign = [k for k in given if k not in own and k.split(".")[0] in parts]
    missing = sorted(wanted - set(given))
    shapes = [k for k in wanted & set(given) if own[k].shape != given[k].shape]
    wrong = [*missing, *sorted(foreign), *sorted(shapes)]
    if wrong:
        raise ManifptError(
            f"{uri}: not the weights of {backbone}: {len(wrong)} of its tensors do not fit, "
            f"such as {wrong[0]}; name the right network"
        )
    network.load_state_dict({k: v for k, v in given.items() if k in own}, strict=False)
