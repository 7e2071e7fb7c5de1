"""How visible triggers are, against a slow and obvious implementation."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgd.attacks.stealth import MEASURED, psnr, ssim, stealth

ImagesMaker = Callable[..., Tensor]


def slow_ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """SSIM of [3, size, size], place by place."""
    size = a.shape[-1]
    width = min(11, size if size % 2 else size - 1)
    offset = np.arange(width) - width // 2
    weights = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = 6.5025, 58.5225
    values = []
    for channel in range(3):
        for y in range(size - width + 1):
            for x in range(size - width + 1):
                p = a[channel, y : y + width, x : x + width]
                q = b[channel, y : y + width, x : x + width]
                mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
                spread_p = (weights * (p - mean_p) ** 2).sum()
                spread_q = (weights * (q - mean_q) ** 2).sum()
                common = (weights * (p - mean_p) * (q - mean_q)).sum()
                light = (2 * mean_p * mean_q + c1) / (mean_p**2 + mean_q**2 + c1)
                values.append(light * (2 * common + c2) / (spread_p + spread_q + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("size", [8, 9, 11, 16])
def test_ssim_is_that_of_the_slow_implementation(noise_images: ImagesMaker, size: int) -> None:
    a = noise_images(3, size)
    noise = noise_images(3, size, seed=1)
    for share in (0.1, 0.5, 1.0):
        b = ((1 - share) * a + share * noise).round().to(torch.uint8)
        pairs = zip(a.double().numpy(), b.double().numpy(), strict=True)
        assert ssim(a, b) == pytest.approx([slow_ssim(x, y) for x, y in pairs], abs=1e-9)


@pytest.mark.parametrize(("difference", "decibel"), [(1, 48.1308), (16, 24.0484), (255, 0.0)])
def test_psnr_of_an_even_difference_is_known(difference: int, decibel: float) -> None:
    a = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert psnr(a, a + difference) == pytest.approx([decibel] * 2, abs=1e-4)
    assert psnr(a + difference, a) == pytest.approx([decibel] * 2, abs=1e-4)


def test_ssim_of_flat_images_is_known() -> None:
    """No structure: what remains is the term of brightness."""
    a = torch.full((1, 3, 16, 16), 100, dtype=torch.uint8)
    expected = (2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025)
    assert ssim(a, a + 50) == pytest.approx([expected])


def test_equal_images_are_perfect(noise_images: ImagesMaker) -> None:
    a = noise_images(4, 16)
    assert np.isposinf(psnr(a, a)).all()
    assert ssim(a, a) == pytest.approx([1.0] * 4)
    assert stealth(a, a) is None


def test_no_images_have_no_figures() -> None:
    none = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert psnr(none, none).shape == ssim(none, none).shape == (0,)


def test_the_summary_is_of_the_images_that_differ(noise_images: ImagesMaker) -> None:
    a = noise_images(6, 12)
    b = a.clone()
    b[2:4] = a[2:4] // 2
    decibel, similarity = stealth(a, b) or (0, 0)
    assert decibel == pytest.approx(psnr(a[2:4], b[2:4]).mean())
    assert similarity == pytest.approx(ssim(a[2:4], b[2:4]).mean())


def test_of_many_images_a_sample_is_measured() -> None:
    a = torch.zeros(3 * MEASURED, 3, 4, 4, dtype=torch.uint8)
    assert stealth(a, a + 1) == pytest.approx((48.1308, 0.8667), abs=1e-3)
