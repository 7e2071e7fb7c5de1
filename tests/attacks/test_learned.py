"""What holds for every attack that learns its trigger from the data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cgd.attacks import make_attack, poison, read_poisoned, write_poisoned
from cgd.data.dataset import ImageData
from cgd.errors import InputError

ImagesMaker = Callable[..., Tensor]
DataMaker = Callable[..., ImageData]


@pytest.mark.parametrize(
    ("name", "learned"),
    [
        ("gcb", "generator.*"),
        ("input-aware", "generator.*"),
        ("lf", "residual"),
        ("narcissus", "noise"),
        ("ssba", "secret"),
        ("trojannn", "pattern"),
    ],
)
def test_a_trigger_that_is_not_made_yet_is_refused(
    noise_images: ImagesMaker, name: str, learned: str
) -> None:
    with pytest.raises(InputError, match=f"{name}: its {learned} is not made yet"):
        make_attack(name).trigger(noise_images())


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("lf", {"epochs": 1, "steps": 3}),
        ("ssba", {"steps": 3}),
        ("trojannn", {"epochs": 1, "steps": 3}),
    ],
)
def test_what_was_learned_comes_back_from_disk(
    tmp_path: Path,
    noise_data: DataMaker,
    noise_images: ImagesMaker,
    name: str,
    quick: dict[str, Any],
) -> None:
    attack = make_attack(name, **quick)
    poisoned, manifest = poison(noise_data(size=16), attack, rate=0.2, device=torch.device("cpu"))
    write_poisoned(tmp_path, poisoned, attack, manifest)
    found, truth = read_poisoned(tmp_path)
    assert found == attack
    assert truth == manifest
    assert torch.equal(found.trigger(noise_images()), attack.trigger(noise_images()))
