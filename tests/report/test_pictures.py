"""Pictures of the report: PNG data URIs and dots."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from cgd.report.pictures import density, thumbnail


def decode(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_a_small_image_is_kept_pixel_by_pixel() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    shown = np.asarray(decode(thumbnail(image)))
    np.testing.assert_array_equal(shown, image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [65, 224])
def test_a_large_image_is_shrunk(size: int) -> None:
    image = torch.full((3, size, size), 200, dtype=torch.uint8)
    shown = decode(thumbnail(image))
    assert shown.size == (64, 64)
    assert shown.getpixel((10, 10)) == (200, 200, 200)


def test_density_is_opaque_where_samples_gather_and_clear_where_none_are() -> None:
    x, y = np.full(9, 0.05), np.full(9, 0.95)
    pixels = np.asarray(decode(density(x, y, (1, 2, 3), bins=10, full=9)))
    assert pixels[0, 0].tolist() == [1, 2, 3, 255]
    assert pixels[..., 3].sum() == 255
