import numpy as np
import pytest

from manifpt.errors import ManifptError
from manifpt.spaces import make_space, space_from_card


@pytest.mark.parametrize("name", ["rgb", "freq"])
def test_vectors_do_not_depend_on_the_batch(name):
    images = np.random.default_rng(0).integers(0, 256, (33, 28, 28, 3), dtype=np.uint8)
    space = make_space(name, 28)
    whole = space.embed(images)
    assert whole.shape == (33, *space.shape)
    assert whole.dtype == np.float32
    for size in (1, 7, 32):
        parts = [space.embed(images[i : i + size]) for i in range(0, 33, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(space_from_card(space.card()).embed(images), whole)


def test_the_spectrum_of_a_constant_and_of_a_wave():
    constant = np.full((1, 16, 16, 3), 255, np.uint8)
    space = make_space("freq", 16, log=False)
    spectrum = space.embed(constant)[0, 0]
    assert spectrum[8, 8] == pytest.approx(256)
    assert np.delete(spectrum.ravel(), 8 * 16 + 8).max() < 1e-9
    wave = np.zeros((1, 16, 16, 3), np.uint8)
    wave[:, :, ::2] = 255
    spectrum = space.embed(wave)[0, 0]
    assert spectrum[8, 0] == pytest.approx(128)  # the highest horizontal frequency


def test_unknown_space_names_the_choice():
    with pytest.raises(ManifptError, match="rgb, freq"):
        make_space("clip", 8)
