"""Preprocessing against open_clip's own PIL transform."""

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from cgd.guides.preprocessing import Preprocessing, resize_by_products

CPU = torch.device("cpu")
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
ROUNDING = 1.01 / 255 / min(STD)

SHAPES = [(20, 20), (32, 32), (37, 64), (64, 37), (301, 200), (32, 33), (4, 200)]


def as_image(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_same_as_open_clip(size: tuple[int, int], mode: str, interpolation: str) -> None:
    if size[0] != size[1] and mode == "shortest" and interpolation == "bilinear":
        pytest.skip("open_clip ignores the interpolation here")
    options = {"mean": MEAN, "std": STD, "resize_mode": mode, "interpolation": interpolation}
    theirs = open_clip.image_transform(size, is_train=False, **options)
    ours = Preprocessing(size, MEAN, STD, interpolation, mode)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    # Not black or white: where a bicubic overshoot is cut off, Pillow and torch may differ.
    images = [torch.from_numpy(rng.integers(80, 176, (3, *s), dtype=np.uint8)) for s in SHAPES]
    expected = torch.stack([theirs(as_image(image)) for image in images])
    assert (ours(images, CPU) - expected).abs().max() < ROUNDING
    of_gpu = ours._together(images, CPU) / 255
    pixels = expected * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    assert (of_gpu - pixels).abs().max() < 1.01 / 255


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(2, 40), st.integers(2, 40)),  # torch is wrong on lines one pixel wide
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.sampled_from(["bicubic", "bilinear"]),
)
def test_products_with_matrices_resize_as_torch_does(
    have: tuple[int, int], want: tuple[int, int], mode: str
) -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, *have), dtype=np.uint8))
    found = resize_by_products(images, want, mode)
    expected = F.interpolate(images.double(), want, mode=mode, antialias=True).clamp(0, 255)
    assert found.dtype == torch.uint8
    assert (found - expected).abs().max() < 0.51


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["shortest", "longest", "squash"]))
def test_every_shape_lands_as_in_open_clip(height: int, width: int, mode: str) -> None:
    assume(max(height, width) <= 4 * min(height, width))
    image = torch.from_numpy(
        np.random.default_rng(0).integers(80, 176, (3, height, width), dtype=np.uint8)
    )
    theirs = open_clip.image_transform(16, is_train=False, mean=MEAN, std=STD, resize_mode=mode)
    ours = Preprocessing((16, 16), MEAN, STD, resize=mode)  # type: ignore[arg-type]
    assert (ours([image], CPU)[0] - theirs(as_image(image))).abs().max() < 2 * ROUNDING


def test_a_strip_does_not_fill_the_memory() -> None:
    strip = torch.zeros(3, 1, 500_000, dtype=torch.uint8)
    assert Preprocessing((224, 224), MEAN, STD)([strip], CPU).shape == (1, 3, 224, 224)
