"""Several guides at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cgd.data.dataset import ImageData
from cgd.entropy import entropy_map, label_entropy
from cgd.errors import InputError
from cgd.guides import open_guide
from cgd.guides.joint import SCALES, calibrated_scale

DRAW = np.random.default_rng(0)


def answers(labels: torch.Tensor, right: float, sure: float) -> np.ndarray:
    """Logits of a guide that knows a share of the labels."""
    own = np.where(DRAW.random(len(labels)) < right, labels, 1 - labels.numpy())
    noise = DRAW.normal(size=(len(labels), 2)) * 0.3
    return (sure * (np.eye(2)[own] + noise)).astype(np.float32)


def test_the_label_is_as_contradicted_as_in_the_eyes_of_either_guide(
    noise_data: Callable[..., ImageData], tmp_path: Path
) -> None:
    data = noise_data()
    scores = [answers(data.labels, 0.9, 3.0), answers(data.labels, 0.8, 60.0)]
    for number, logits in enumerate(scores):
        np.save(tmp_path / f"{number}.npy", logits)
    first, second = (f"scores:{tmp_path / str(number)}.npy" for number in range(2))
    joint = open_guide(f"{first} + {second}")
    assert joint.name == f"{first} + {second}"
    logits = joint.logits(data)
    each = []
    for own in map(torch.from_numpy, scores):
        each.append(label_entropy(own * calibrated_scale(own, data.labels), data.labels))
    highest = np.maximum(*each)
    np.testing.assert_allclose(label_entropy(logits, data.labels), highest, rtol=1e-6)
    order = entropy_map(logits, logits, data.labels).guide_rank.argsort(kind="stable")
    assert (np.diff(highest[order]) >= -1e-9).all()


def test_a_guide_is_made_as_sure_as_it_is_right() -> None:
    labels = torch.arange(4000) % 2
    own = torch.from_numpy(np.where(DRAW.random(4000) < 0.8, labels, 1 - labels))
    logits = 20.0 * torch.eye(2)[own]
    scale = calibrated_scale(logits, labels)
    step = SCALES[1] / SCALES[0]
    assert np.log(4) / 20 / step < scale < np.log(4) / 20 * step  # 80 % are odds of 4 to 1
    assert torch.softmax(logits * scale, 1).max() == pytest.approx(0.8, abs=0.05)


def test_a_path_may_hold_a_plus(noise_data: Callable[..., ImageData], tmp_path: Path) -> None:
    data = noise_data()
    scores = answers(data.labels, 0.9, 3.0)
    np.save(tmp_path / "a + b.npy", scores)
    logits = open_guide(f"scores:{tmp_path / 'a + b.npy'}").logits(data)
    assert torch.equal(logits, torch.from_numpy(scores))


def test_each_part_must_be_a_guide() -> None:
    with pytest.raises(InputError, match=r"guide 'demo \+ magic'"):
        open_guide("demo + magic")
