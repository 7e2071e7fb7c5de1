"""FTrojan and CTRL: exactly the named coefficients of the colour are raised."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from cgd.attacks import make_attack
from cgd.attacks.frequency import (
    add_to_chroma,
    cosine_basis,
    from_luma_chroma,
    pattern_of,
    to_luma_chroma,
)
from cgd.errors import InputError

ImagesMaker = Callable[..., Tensor]
YUV = (0.492, 0.877)


def test_luma_and_chroma_go_back_and_forth(noise_images: ImagesMaker) -> None:
    images = noise_images(2)
    assert torch.equal(from_luma_chroma(to_luma_chroma(images, YUV), YUV), images)


def test_the_cosine_transform_is_that_of_scipy() -> None:
    block = np.random.default_rng(0).normal(size=(16, 16))
    basis = cosine_basis(16).double().numpy()
    np.testing.assert_allclose(basis @ block @ basis.T, dctn(block, norm="ortho"), atol=1e-5)


def test_a_pattern_has_its_frequencies_and_no_other() -> None:
    coefficients = dctn(pattern_of(((3, 5), (7, 1)), 8).double().numpy(), norm="ortho")
    expected = np.zeros((8, 8))
    expected[3, 5] = expected[7, 1] = 1
    np.testing.assert_allclose(coefficients, expected, atol=1e-6)


@pytest.mark.parametrize("size", [32, 64, 70])
def test_every_whole_window_is_raised_and_the_rest_is_not(size: int) -> None:
    images = torch.full((1, 3, size, size), 128, dtype=torch.uint8)
    # Strong, so that rounding to whole numbers does not matter.
    found = add_to_chroma(images, ((4, 4),), 400.0, YUV, window=32)
    planes = to_luma_chroma(found, YUV)[0].double().numpy()
    for top in range(0, size - 31, 32):
        for left in range(0, size - 31, 32):
            for channel in (1, 2):
                window = planes[channel, top : top + 32, left : left + 32]
                coefficients = dctn(window, norm="ortho")
                assert coefficients[4, 4] == pytest.approx(400, rel=0.05)
                coefficients[4, 4] = 0
                assert np.abs(coefficients).max() < 20
    rest = size - size % 32
    assert torch.equal(found[..., rest:, :], images[..., rest:, :])
    assert torch.equal(found[..., :, rest:], images[..., :, rest:])


@pytest.mark.parametrize("name", ["ftrojan", "ctrl"])
@pytest.mark.parametrize("places", ["", "15", "15-15,a-1", "32-1", "1-2-3"])
def test_bad_places_are_refused(name: str, places: str) -> None:
    with pytest.raises(InputError, match=f"{name}: places"):
        make_attack(name, places=places)


@pytest.mark.parametrize("name", ["ftrojan", "ctrl"])
def test_an_endless_magnitude_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="finite"):
        make_attack(name, magnitude=float("inf"))


def test_ftrojan_needs_a_whole_window(noise_images: ImagesMaker) -> None:
    with pytest.raises(InputError, match="at least 32 pixels"):
        make_attack("ftrojan").trigger(noise_images(1, 16))


def test_ctrl_looks_alike_at_other_sizes() -> None:
    """The same period in pixels, and the same amplitude."""
    spans = []
    for size in (32, 64, 224):
        images = torch.full((1, 3, size, size), 128, dtype=torch.uint8)
        change = make_attack("ctrl", places="15-15").trigger(images).float() - 128
        spans.append(float(change.abs().max()))
    assert max(spans) - min(spans) <= 2
