"""Several guides at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.guides import open_guide


def test_the_guide_that_contradicts_the_label_more_is_taken(
    noise_data: Callable[..., ImageData], tmp_path: Path
) -> None:
    data = noise_data()
    scores = np.random.default_rng(0).normal(size=(2, len(data), 2)).astype(np.float32)
    scores[1] *= 20  # surer of itself: its cross-entropies are larger
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", scores[number])
    first, second = (f"scores:{tmp_path / str(number)}.npy" for number in range(2))
    guide = open_guide(f"{first} + {second}")
    assert guide.name == f"{first} + {second}"
    labels = data.labels.numpy()
    margin = np.take_along_axis(scores, labels[None, :, None], 2)[..., 0] * 2 - scores.sum(2)
    place = margin.argsort(1).argsort(1)  # low: the label is contradicted
    expected = [scores[int(b < a), row] for row, (a, b) in enumerate(place.T)]
    assert torch.equal(guide.logits(data), torch.from_numpy(np.array(expected)))


def test_a_guide_alone_is_the_same_twice(
    noise_data: Callable[..., ImageData], tmp_path: Path
) -> None:
    data = noise_data()
    np.save(tmp_path / "s.npy", np.eye(2, dtype=np.float32)[np.arange(len(data)) % 2])
    spec = f"scores:{tmp_path / 's.npy'}"
    both = open_guide(f"{spec} + {spec}").logits(data)
    assert torch.equal(both, open_guide(spec).logits(data))


def test_each_part_must_be_a_guide() -> None:
    with pytest.raises(InputError, match="guide 'magic': no such kind"):
        open_guide("demo + magic")
