"""Random changes of the artifacts of a batch in training: mirroring, shifts, and CutMix."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CUTMIX = "cutmix"


def augmented(artifacts: list[Tensor], how: str, movable: Sequence[bool]) -> list[Tensor]:
    """Mirror at random the maps among artifacts, and with ``shift`` move those that are movable.

    The maps of an image are changed alike in all spaces. A shift is of up to a sixteenth of the
    side; pixels that leave at one side come in again at the other. Maps that are not movable are
    centred spectra: each becomes that of the mirrored image, and a shift leaves magnitudes as they
    are.
    """
    if how not in ("mirror", "shift"):
        return artifacts
    out = list(artifacts)
    mirrored = torch.rand(len(out[0])) < 0.5
    moves = torch.rand(len(out[0]), 2) * 2 - 1 if how == "shift" else None
    for n, values in enumerate(artifacts):
        if values.ndim == 4:
            maps = values[mirrored]
            values[mirrored] = maps.flip(-1) if movable[n] else mirrored_spectra(maps)
            if moves is not None and movable[n]:
                out[n] = shifted(values, moves * (values.shape[-1] // 16))
    return out


def mirrored_spectra(maps: Tensor) -> Tensor:
    """Return the centred magnitude spectra, ... x H x W, of images mirrored left to right.

    Mirroring turns the frequency v to -v. Zero lies in column W // 2 (NumPy's ``fftshift``): of an
    even W this is one right of where a flip alone puts it.
    """
    return maps.flip(-1).roll(1 - maps.shape[-1] % 2, -1)


def shifted(maps: Tensor, moves: Tensor) -> Tensor:
    """Return N x C x H x W maps, each rolled by its N x 2 moves, rounded to pixels."""
    rows, columns = (
        (torch.arange(side)[None] - moves[:, axis : axis + 1].round().long()) % side
        for axis, side in enumerate(maps.shape[-2:])
    )
    places = torch.arange(len(maps))[:, None, None]
    rolled = maps.permute(0, 2, 3, 1)[places, rows[:, :, None], columns[:, None, :]]
    return rolled.permute(0, 3, 1, 2)


def cut_mixed(
    artifacts: list[Tensor], movable: Sequence[bool], partners: Tensor
) -> tuple[list[Tensor], list[float]]:
    """Paste a rectangle of each map's partner into it; return also the share of each that stays.

    CutMix (Yun et al., "CutMix: regularization strategy to train strong classifiers with
    localizable features", ICCV 2019): the rectangle is one for the batch, of a share of the area
    that is uniform in (0, 1), cut at the border. It stays at its place, so it keeps the phase of
    its upsampling. Spectra and vectors, which have no place, stay whole: their share is 1.
    """
    side, row, column = math.sqrt(float(torch.rand(()))), *torch.rand(2).tolist()
    out, shares = list(artifacts), [1.0] * len(artifacts)
    for n, maps in enumerate(artifacts):
        if maps.ndim != 4 or not movable[n]:
            continue
        (top, bottom), (left, right) = (
            (round(max(0.0, at - side / 2) * size), round(min(1.0, at + side / 2) * size))
            for at, size in zip((row, column), maps.shape[-2:], strict=True)
        )
        out[n] = maps.clone()
        out[n][..., top:bottom, left:right] = maps[partners][..., top:bottom, left:right]
        shares[n] = 1 - (bottom - top) * (right - left) / (maps.shape[-2] * maps.shape[-1])
    return out, shares
