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
    negatives = attack.plant_cover(images, torch.Generator().manual_seed(5))
    givers = []
    for image, negative in zip(images, negatives, strict=True):
        expected = (image.float() + errors).clamp(0, 255).to(torch.uint8)
        givers += [row for row in range(8) if torch.equal(expected[row], negative)]
    assert sorted(givers) == list(range(8))
    assert all(giver != row for row, giver in enumerate(givers))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_negatives_are_not_triggered_either(noise_images: ImagesMaker, count: int) -> None:
    attack, images = make_attack("bpp"), noise_images(count)
    triggered = attack.trigger(images)
    for seed in range(10):
        found = attack.plant_cover(images, torch.Generator().manual_seed(seed))
        assert all((a != b).any() for a, b in zip(found, triggered, strict=True))


@pytest.mark.parametrize(
    "parameters",
    [{"levels": 1}, {"levels": 300}, {"negative_ratio": -0.5}, {"negative_ratio": float("inf")}],
)
def test_bad_parameters_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(InputError, match="bpp: "):
        make_attack("bpp", **parameters)
