"""Helpers that many tests share: small image folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ImageMaker = Callable[..., Image.Image]
FolderMaker = Callable[..., Path]


@pytest.fixture
def noise_image() -> ImageMaker:
    """(seed, width, height) -> RGB image of noise; the same seed gives the same image."""

    def make(seed: int, width: int = 8, height: int | None = None) -> Image.Image:
        shape = (width if height is None else height, width, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def image_folder(tmp_path: Path, noise_image: ImageMaker) -> FolderMaker:
    """Make tmp_path/name with class folders of PNG noise images: <class>/0.png, 1.png, ..."""

    def make(
        name: str = "photos",
        classes: tuple[str, ...] = ("cat", "dog"),
        per_class: int = 3,
        width: int = 8,
        height: int | None = None,
    ) -> Path:
        for label, folder in enumerate(classes):
            (tmp_path / name / folder).mkdir(parents=True)
            for i in range(per_class):
                image = noise_image(1000 * label + i, width, height)
                image.save(tmp_path / name / folder / f"{i}.png")
        return tmp_path / name

    return make
