"""`cgd demo`: the whole line, offline, on scikit-learn's handwritten digits."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cgd.data.dataset import ImageData, from_arrays

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIZE = 16
TEST_PER_CLASS = 50


def to_images(inks: Tensor) -> Tensor:
    """Turn the digits' ink counts into images.

    Args:
        inks: [n, 8, 8], the number of inked pixels, 0..16, in each 4x4 cell of a 32x32 bitmap.

    Returns:
        uint8 [n, 3, 16, 16], white ink on black.
    """
    grey = F.interpolate(inks[:, None].float() * (255 / 16), size=SIZE, mode="bilinear")
    return grey.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def demo_data(seed: int = 0) -> tuple[ImageData, ImageData]:
    """Return the 1,797 handwritten digits as a training and a test set.

    Args:
        seed: draws the test set, 50 images a class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = to_images(torch.from_numpy(digits.images))
    labels = digits.target.astype(np.int64)
    everything = from_arrays(images, torch.from_numpy(labels), CLASSES)
    order = np.random.default_rng(seed).permutation(len(labels))
    of_class = [order[labels[order] == number] for number in range(len(CLASSES))]
    test = np.concatenate([rows[:TEST_PER_CLASS] for rows in of_class])
    train = np.concatenate([rows[TEST_PER_CLASS:] for rows in of_class])
    return everything.subset(np.sort(train)), everything.subset(np.sort(test))
