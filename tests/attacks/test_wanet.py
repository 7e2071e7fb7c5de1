"""WaNet: a smooth warp, the same for every image; noise samples are warped differently."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cgd.attacks import make_attack
from cgd.errors import InputError

ImagesMaker = Callable[..., Tensor]


def ramp(size: int) -> Tensor:
    """An image whose red counts columns and whose green counts rows."""
    line = torch.arange(size, dtype=torch.uint8)
    return torch.stack(
        [line.expand(size, size), line[:, None].expand(size, size), torch.zeros(size, size)]
    ).to(torch.uint8)[None]


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("strength", [2.0, 6.0])
def test_pixels_move_by_half_the_strength_on_average(size: int, strength: float) -> None:
    image = ramp(size)
    shift = make_attack("wanet", strength=strength).trigger(image).float() - image.float()
    # Away from the border, where the field is cut off; bicubic upsampling smoothes a little.
    inner = shift[0, :2, size // 8 : -size // 8, size // 8 : -size // 8].abs().mean()
    assert 0.2 * strength < inner < 0.8 * strength


def test_the_field_is_smooth() -> None:
    image = ramp(224)
    shift = make_attack("wanet", strength=40.0).trigger(image).float() - image.float()
    steps = shift[0, :2, 20:-20, 20:-20].diff(dim=-1).abs()
    assert steps.max() <= 3


def test_a_field_without_displacement_is_no_change(noise_images: ImagesMaker) -> None:
    attack, images = make_attack("wanet"), noise_images(2)
    attack.state["field"].zero_()
    assert torch.equal(attack.trigger(images), images)


def test_noise_samples_are_warped_otherwise_and_each_anew(noise_images: ImagesMaker) -> None:
    attack, images = make_attack("wanet", strength=2.0), noise_images(1).expand(3, -1, -1, -1)
    triggered = attack.trigger(images)
    noised = attack.plant_cover(images, torch.Generator().manual_seed(0))
    assert torch.equal(triggered[0], triggered[1])
    assert not torch.equal(noised[0], triggered[0])
    assert not torch.equal(noised[0], noised[1])


@pytest.mark.parametrize("strength", [0.5, 8.0])
def test_noise_moves_a_pixel_by_less_than_one_whatever_the_strength(strength: float) -> None:
    image, attack = ramp(64), make_attack("wanet", strength=strength)
    shifts = [
        attack.plant_cover(image, torch.Generator().manual_seed(seed)).float() for seed in (0, 1)
    ]
    for noised in shifts:
        moved = (noised - attack.trigger(image).float())[0, :2, 8:-8, 8:-8].abs()
        assert moved.max() <= 1
        assert moved.mean() > 0.1
    assert not torch.equal(*shifts)


def test_the_seed_draws_the_field(noise_images: ImagesMaker) -> None:
    images = noise_images()
    first, again, other = (
        make_attack("wanet", field_seed=seed).trigger(images) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"grid": 1}, "grid must be 2 to 1024, not 1"),
        ({"strength": 0.0}, "strength must be above 0"),
        ({"strength": float("nan")}, "strength must be above 0"),
        ({"strength": float("inf")}, "strength must be above 0"),
        ({"noise_ratio": -1.0}, "noise_ratio at least 0"),
        ({"noise_ratio": float("inf")}, "noise_ratio at least 0, both finite"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_attack("wanet", **parameters)
