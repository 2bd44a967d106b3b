"""Mirrored, shifted and mixed maps, beside the images that they come from."""

import numpy as np
import pytest
import torch

from manifpt.attribution.model.augmentation import augmented, cut_mixed, mirrored_spectra, shifted
from manifpt.spaces.frequency import Frequency, rounding_noise


def test_shifts_roll_each_map_by_its_own_move():
    maps = torch.randn(3, 2, 8, 6)
    moves = torch.tensor([[1.0, -2.0], [0.0, 0.0], [-3.4, 2.6]])
    found = shifted(maps, moves)
    for one, row, column, result in zip(maps, (1, 0, -3), (-2, 0, 3), found, strict=True):
        assert torch.equal(result, one.roll((row, column), (1, 2)))


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("size", [4, 7, 12, 15])
def test_a_mirrored_spectrum_is_that_of_the_mirrored_image(size, log):
    images = np.random.default_rng(size).integers(0, 256, (5, size, size, 3), np.uint8)
    space = Frequency(size, rounding_noise(size), log)
    found = mirrored_spectra(torch.from_numpy(space.embed(images)))
    assert found.numpy() == pytest.approx(space.embed(images[:, :, ::-1]), rel=1e-5, abs=1e-5)
    assert torch.equal(mirrored_spectra(found), torch.from_numpy(space.embed(images)))


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("how", ["none", "mirror", "shift"])
def test_the_spaces_of_an_augmented_image_stay_those_of_one_image(how, size):
    """Each image's spectrum is that of its pixels before and after; vectors stay."""
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), np.uint8)
    maps, vectors = torch.from_numpy(images).permute(0, 3, 1, 2).float(), torch.randn(64, 5)
    space = Frequency(size, rounding_noise(size))
    spectra = torch.from_numpy(space.embed(images))
    given = [maps.clone(), spectra.clone(), vectors.clone()]
    pixels, freq, same = augmented(given, how, (True, False, True))
    assert torch.equal(same, vectors)
    again = pixels.permute(0, 2, 3, 1).numpy().astype(np.uint8)
    assert freq.numpy() == pytest.approx(space.embed(again), rel=1e-5, abs=1e-5)
    most = size // 16 if how == "shift" else 0
    moves = [(y, x) for y in range(-most, most + 1) for x in range(-most, most + 1)]
    mirrors = (False, True) if how != "none" else (False,)
    seen = set()
    for one, result in zip(maps, pixels, strict=True):
        fits = [
            (mirror, move)
            for mirror in mirrors
            for move in moves
            if torch.equal(result, (one.flip(-1) if mirror else one).roll(move, (1, 2)))
        ]
        assert len(fits) == 1
        seen.update(fits)
    assert {mirror for mirror, _ in seen} == set(mirrors)
    assert len({move for _, move in seen}) > len(moves) / 2


def test_a_rectangle_of_the_partner_stands_at_its_own_place():
    torch.manual_seed(3)
    maps, small = torch.randn(6, 2, 16, 24), torch.randn(6, 2, 8, 12)
    spectra, vectors = torch.randn(6, 2, 16, 24), torch.randn(6, 5)
    partners = torch.tensor([1, 2, 3, 4, 5, 0])
    kept = []
    for _ in range(300):
        given = [maps, spectra, vectors, small]
        found, shares = cut_mixed(given, (True, False, False, True), partners)
        assert torch.equal(found[1], spectra)
        assert torch.equal(found[2], vectors)
        assert shares[1] == shares[2] == 1
        for n in (0, 3):
            pasted = (found[n] != given[n]).any(1).any(0)
            assert shares[n] == pytest.approx(1 - pasted.float().mean().item())
            rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
            assert pasted.sum() == len(rows) * len(columns)  # it is a rectangle
            assert torch.equal(found[n][:, :, pasted], given[n][partners][:, :, pasted])
        assert shares[0] == pytest.approx(shares[3], abs=0.3)
        kept.append(shares[0])
    assert min(kept) < 0.2
    assert max(kept) > 0.95
