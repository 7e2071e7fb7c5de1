"""SIG: a sine along the columns, added to every row and channel."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cgd.attacks import make_attack
from cgd.errors import InputError

ImagesMaker = Callable[..., torch.Tensor]


def slow_waves(size: int, delta: float, frequency: float) -> list[float]:
    return [delta * math.sin(2 * math.pi * j * frequency / size) for j in range(size)]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("parameters", [{}, {"delta": 20.0, "frequency": 3.5}])
def test_every_column_is_shifted_by_its_sine(
    noise_images: ImagesMaker, size: int, grey: bool, parameters: dict[str, float]
) -> None:
    images = noise_images(2, size, grey)
    found = make_attack("sig", **parameters).trigger(images)
    waves = slow_waves(size, **({"delta": 40.0, "frequency": 6.0} | parameters))
    exact = np.clip(images.numpy() + np.array(waves), 0, 255)
    assert found.dtype == torch.uint8
    # Rounded to the nearest number; either neighbour where it lies half-way.
    assert np.abs(found.numpy() - exact).max() <= 0.5 + 1e-3
    assert torch.equal(images, noise_images(2, size, grey))
    if grey:
        assert torch.equal(found[:, :1].expand_as(found), found)


def test_black_and_white_do_not_wrap_around() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 32, 32)
    black, white = make_attack("sig", delta=255.0).trigger(images).int()
    waves = np.array(slow_waves(32, 255.0, 6.0))
    # Half a wave up, half a wave down: each of them can only show in one of the two.
    assert (black.numpy()[..., waves < -1] == 0).all()
    assert (white.numpy()[..., waves > 1] == 255).all()
    assert black.max() > 250
    assert white.min() < 5


def test_no_images_stay_no_images(noise_images: ImagesMaker) -> None:
    assert make_attack("sig").trigger(noise_images(0)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", ["delta", "frequency"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_parameters_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"sig: {name} must be a finite number"):
        make_attack("sig", **{name: value})
