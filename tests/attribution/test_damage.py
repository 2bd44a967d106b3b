"""Files of an attributor that are not what its manifest says: one line that names the remedy."""

import json
import shutil
from functools import cache
from pathlib import Path

import handmade
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_open_set import World, fit

from manifpt import storage
from manifpt.attribution.model.trained import (
    OPEN_SET,
    REMEDY,
    SEEN,
    WEIGHTS,
    TrainedAttributor,
    sealed,
)
from manifpt.errors import DamageError, ManifptError
from manifpt.outputs import MANIFEST
from manifpt.outputs.formats import Manifest
from manifpt.spaces import SpaceSettings, make_space

FILES = [WEIGHTS, SEEN, OPEN_SET, MANIFEST]


def use(folder: Path | str) -> TrainedAttributor:
    """Open an attributor and read all that it has."""
    attributor = TrainedAttributor.open(str(folder))
    attributor.network()
    assert attributor.open_set is not None
    attributor.seen()
    attributor.seen_looks()
    return attributor


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An attributor with an open set, whose manifest has the hashes of all files."""
    folder = Path(handmade.attributor(tmp_path_factory.mktemp("damage") / "whole"))
    storage.write_bytes(str(folder / OPEN_SET), fit(World(), rows=20).to_bytes())
    files = {name: {"sha256": storage.sha256(str(folder / name))} for name in FILES[:-1]}
    manifest = storage.read_json(str(folder / MANIFEST)) | {"files": files}
    storage.write_json(str(folder / MANIFEST), sealed(manifest))
    use(folder)
    return folder


@pytest.fixture(scope="module")
def before(whole) -> Path:
    """The same as it would be of a version whose manifests had no hashes."""
    folder = Path(shutil.copytree(whole, whole.parent / "before"))
    manifest = storage.read_json(str(folder / MANIFEST))
    manifest = manifest | {"files": {name: {} for name in FILES[:-1]}}
    del manifest["manifest_sha256"]
    storage.write_json(str(folder / MANIFEST), manifest)
    use(folder)
    return folder


@cache
def content(path: Path) -> bytes:
    return path.read_bytes()


DAMAGES = st.tuples(
    st.sampled_from(["flip", "cut", "fill", "add"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
)


def damaged(data: bytes, how: str, place: float, value: int) -> bytes:
    at = int(place * len(data))
    if how == "flip":
        return data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    return data[:at] + bytes([value]) * 16 + data[at if how == "add" else at + 16 :]


def said(folder: Path) -> str:
    """Return what is said of an attributor; "" if it can be used."""
    try:
        use(folder)
    except ManifptError as error:
        (line,) = str(error).splitlines()
        return line
    return ""


@pytest.mark.parametrize("name", FILES)
@given(damage=DAMAGES)
@settings(max_examples=30, deadline=None)
def test_every_damage_is_one_line(whole, name, damage):
    path = whole / name
    good = content(path)
    bad = damaged(good, *damage)
    try:
        path.write_bytes(bad)
        message = said(whole)
    finally:
        path.write_bytes(good)
    if name != MANIFEST:
        assert (str(path) in message and REMEDY in message) == (bad != good)
    elif not message:  # the manifest without its hash, or with other spaces, is as before
        kept = json.loads(good), json.loads(bad)
        for manifest in kept:
            for free in Manifest.__annotations__:
                manifest.pop(free, None)
        assert "manifest_sha256" not in kept[1] or kept[0] == kept[1]


@pytest.mark.parametrize("name", FILES[:-1])
@given(damage=DAMAGES)
@settings(max_examples=25, deadline=None)
def test_without_hashes_what_cannot_be_read_is_one_line(before, name, damage):
    good = content(before / name)
    try:
        (before / name).write_bytes(damaged(good, *damage))
        said(before)
    finally:
        (before / name).write_bytes(good)


def test_weights_of_others_are_one_line_and_run_nothing(before, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    state = torch.load(before / WEIGHTS, weights_only=True)
    first = next(name for name, value in state.items() if value.is_floating_point())
    good = content(before / WEIGHTS)
    for other in (
        {},
        [1, 2],
        {"a": 1},
        {name: value for name, value in state.items() if name != first},
        state | {first: torch.zeros(1, 2, 3)},
        state | {"more": torch.zeros(1)},
        state | {first: torch.full_like(state[first], torch.nan)},
        {1: torch.zeros(1)},
        Evil(),
    ):
        try:
            torch.save(other, before / WEIGHTS)
            assert f"{before}/{WEIGHTS}" in said(before)
        finally:
            (before / WEIGHTS).write_bytes(good)
    assert not (tmp_path / "ran").exists()
    assert said(before) == ""


def test_arrays_of_others_are_one_line(before):
    good = content(before / OPEN_SET)
    with np.load(before / OPEN_SET) as file:
        arrays = dict(file)
    del arrays["usual"]
    try:
        np.savez(before / OPEN_SET, **arrays)
        assert "lacks usual" in said(before)
        np.savez(before / OPEN_SET, worth=np.array([object()]))
        assert "not a file of arrays alone" in said(before)
    finally:
        (before / OPEN_SET).write_bytes(good)


def test_a_file_that_is_gone_is_one_line(whole):
    for name in FILES[:-1]:
        good = content(whole / name)
        (whole / name).unlink()
        assert "no such file" in said(whole)
        (whole / name).write_bytes(good)


def test_an_encoder_is_that_of_its_manifest(tmp_path):
    from torchvision.models import resnet18

    folder = tmp_path / "encoder"
    folder.mkdir()
    torch.save(resnet18().state_dict(), folder / WEIGHTS)
    sha256 = storage.sha256(str(folder / WEIGHTS))
    network = {
        "kind": "encoder",
        "key": "0" * 64,
        "backbone": "resnet18",
        "stem": "standard",
        "network_size": 32,
    }
    moments = {"mean": [0] * 3, "std": [1] * 3}
    manifest = network | moments | {"files": {WEIGHTS: {"sha256": sha256}}}
    options = SpaceSettings(ssl_network="resnet18", ssl_weights=str(folder))
    storage.write_json(str(folder / MANIFEST), manifest)
    assert make_space("ssl", 32, options).weights_sha256 == sha256
    good = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(good[:-1])
    with pytest.raises(DamageError, match="differs from its hash"):
        make_space("ssl", 32, options)
    (folder / WEIGHTS).write_bytes(good)
    del manifest["mean"]
    storage.write_json(str(folder / MANIFEST), manifest)
    with pytest.raises(DamageError, match="its manifest is damaged"):
        make_space("ssl", 32, options)
