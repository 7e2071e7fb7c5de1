"""The picture of an attack."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd.attacks.preview import COLUMNS, GAP, TEXT, TILE, preview

ImagesMaker = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("size", "side"), [(8, 128), (28, 112), (32, 128), (48, 96), (96, 96), (224, 128)]
)
def test_images_are_enlarged_by_a_whole_factor(
    noise_images: ImagesMaker, size: int, side: int
) -> None:
    images = noise_images(8, size)
    drawn = preview(images, images)
    assert side <= TILE
    assert drawn.size == (GAP + 8 * (side + GAP), 3 * (TEXT + GAP + side + GAP) + GAP)


def test_rows_are_original_changed_and_difference() -> None:
    before = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    after = before.clone()
    after[0, 0] += 7
    after[1, 1] -= 60
    pixels = np.asarray(preview(before, after))
    step = TEXT + GAP + 128 + GAP
    middle = TEXT + GAP + 64
    columns = (GAP + 64, GAP + 128 + GAP + 64)
    shown = [[pixels[y * step + middle, x].tolist() for x in columns] for y in range(3)]
    assert shown == [
        [[100, 100, 100], [100, 100, 100]],
        [[107, 100, 100], [100, 40, 100]],
        [[70, 0, 0], [0, 255, 0]],
    ]
    assert pixels[-1].min() == 255


def test_eight_columns_at_most_and_a_long_caption_fits(noise_images: ImagesMaker) -> None:
    images = noise_images(20, 16)
    assert preview(images, images).size == preview(images[:COLUMNS], images[:COLUMNS]).size
    one = preview(images[:1], images[:1], changed="with the trigger of the test images")
    assert one.width > 200
