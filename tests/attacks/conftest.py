"""Helpers of the attack tests: noise images."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cgd.data.dataset import ImageData, from_arrays

ImagesMaker = Callable[..., Tensor]
DataMaker = Callable[..., ImageData]


@pytest.fixture(scope="session")
def noise_images() -> ImagesMaker:
    """(n, size, grey, seed) -> uint8 [n, 3, size, size] of noise, all values from 0 to 255."""

    def make(n: int = 2, size: int = 32, grey: bool = False, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (n, 1 if grey else 3, size, size)
        images = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        return images.expand(n, 3, size, size).clone()

    return make


@pytest.fixture(scope="session")
def noise_data(noise_images: ImagesMaker) -> DataMaker:
    """(n, classes, size) -> data of noise images, the classes in turn."""

    def make(n: int = 40, classes: int = 4, size: int = 8) -> ImageData:
        names = [f"class {label}" for label in range(classes)]
        return from_arrays(noise_images(n, size), torch.arange(n) % classes, names)

    return make
