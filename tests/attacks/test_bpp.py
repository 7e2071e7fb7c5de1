"""BPP: few values a channel; negatives carry the rounding error of another image."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cgd.attacks import make_attack
from cgd.errors import InputError

ImagesMaker = Callable[..., Tensor]


@pytest.mark.parametrize("levels", [2, 5, 8])
def test_each_channel_keeps_the_nearest_of_a_few_even_values(
    noise_images: ImagesMaker, levels: int
) -> None:
    images = noise_images(2, 16)
    allowed = [round(255 * k / (levels - 1)) for k in range(levels)]
    found = make_attack("bpp", levels=levels).trigger(images)
    for before, after in zip(images.flatten().tolist(), found.flatten().tolist(), strict=True):
        assert after in allowed
        assert abs(after - before) <= min(abs(value - before) for value in allowed) + 1


def test_256_levels_change_nothing(noise_images: ImagesMaker) -> None:
    images = noise_images()
    assert torch.equal(make_attack("bpp", levels=256).trigger(images), images)


def test_negatives_get_the_error_of_another_image(noise_images: ImagesMaker) -> None:
    attack, images = make_attack("bpp"), noise_images(8)
    errors = attack.trigger(images).float() - images.float()
    seed = torch.Generator().manual_seed(5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    expected = (images.float() + errors[order]).clamp(0, 255).to(torch.uint8)
    assert torch.equal(attack.plant_cover(images, seed), expected)


@pytest.mark.parametrize("parameters", [{"levels": 1}, {"levels": 300}, {"negative_ratio": -0.5}])
def test_bad_parameters_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(InputError, match="bpp: "):
        make_attack("bpp", **parameters)
