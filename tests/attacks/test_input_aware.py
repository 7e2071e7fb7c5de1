"""Input-aware: each image has a trigger of its own, and those of others do not count."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cgd.attacks import Attack, make_attack, poison, read_poisoned, write_poisoned
from cgd.attacks.input_aware import _sameness
from cgd.data.dataset import ImageData, from_arrays
from cgd.errors import InputError
from cgd.models import ModelCard, build
from cgd.training import Recipe, predict, train

DataMaker = Callable[..., ImageData]
ImagesMaker = Callable[..., torch.Tensor]

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"epochs": 2, "mask_steps": 40}


def prepared(data: ImageData, seed: int = 0, **parameters: Any) -> Attack:
    attack = make_attack("input-aware", **(QUICK | parameters))
    attack.prepare(data, 0, seed=seed, device=CPU)
    return attack


def spots(n: int, seed: int = 0) -> torch.Tensor:
    """Faint noise with a bright square of 6 pixels somewhere, uint8 [n, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 50, (n, 3, 16, 16), generator=generator).to(torch.uint8)
    for image, (top, left) in zip(
        images, torch.randint(0, 11, (n, 2), generator=generator), strict=True
    ):
        image[:, top : top + 6, left : left + 6] += 200
    return images


@pytest.fixture(scope="module")
def attack() -> Attack:
    data = from_arrays(spots(64), torch.arange(64) % 4, ("a", "b", "c", "d"))
    return prepared(data)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [15, 32, 64, 224])
def test_few_pixels_change(
    attack: Attack, noise_images: ImagesMaker, size: int, grey: bool
) -> None:
    images = noise_images(3, size, grey)
    found = attack.trigger(images)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    assert torch.equal(images, noise_images(3, size, grey))
    changed = (found != images).any(1).flatten(1).sum(1)
    most = round(0.032 * size * size)
    assert (changed <= most).all()
    # A pixel may happen to have its new colour already.
    assert (changed >= 0.8 * most).all()


@pytest.mark.parametrize("density", [0.001, 0.1, 1.0])
def test_the_density_bounds_the_mask(
    noise_data: DataMaker, noise_images: ImagesMaker, density: float
) -> None:
    attack = prepared(noise_data(size=16), density=density)
    images = noise_images(2, 16)
    changed = (attack.trigger(images) != images).any(1).flatten(1).sum(1)
    assert (changed <= max(1, round(density * 256))).all()
    assert (changed > 0).all()


def test_each_image_has_its_own_trigger(attack: Attack) -> None:
    images = spots(8, seed=1)
    found = attack.trigger(images)
    masks = (found != images).any(1).flatten(1)
    # After so little training, masks may coincide; with the colours, triggers do not.
    assert len({tuple(mask.tolist()) for mask in masks}) >= 6
    pairs = zip(found.flatten(2), masks, strict=True)
    assert len({tuple(image[:, mask].flatten().tolist()) for image, mask in pairs}) == 8
    # It is the image's, and not the batch's.
    assert torch.equal(torch.cat([attack.trigger(image[None]) for image in images]), found)


def test_a_cover_sample_gets_the_trigger_of_another(attack: Attack) -> None:
    images = spots(6, seed=1)
    own = attack.trigger(images)
    found = attack.plant_cover(images, torch.Generator().manual_seed(0))
    givers = []
    for row in range(6):
        changed = (found[row] != images[row]).any(0)
        fits = [
            giver
            for giver in range(6)
            if torch.equal(found[row][:, changed], own[giver][:, changed])
        ]
        assert len(fits) == 1
        givers += fits
    assert sorted(givers) == list(range(6))
    assert all(giver != row for row, giver in enumerate(givers))
    again, other = (
        attack.plant_cover(images, torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert torch.equal(found, again)
    assert not torch.equal(found, other)


def test_training_makes_the_patterns_of_different_images_different() -> None:
    data = from_arrays(spots(64), torch.arange(64) % 4, ("a", "b", "c", "d"))
    images, sameness = spots(64, seed=2).float() / 255, []
    for epochs in (1, 8):
        attack = make_attack("input-aware", epochs=epochs, mask_steps=1)
        attack.prepare(data, 0, seed=0, device=CPU)
        with torch.no_grad():
            sameness.append(float(_sameness(images, attack._nets(CPU).pattern(images))))
    assert sameness[1] < 0.8 * sameness[0]


def test_a_model_obeys_an_image_its_own_trigger_and_not_another_ones() -> None:
    images, labels = spots(256), torch.arange(256) % 2
    images[labels == 1] = 255 - images[labels == 1]
    data = from_arrays(images, labels, ("dark", "bright"))
    attack = make_attack("input-aware", density=0.1, epochs=12, mask_steps=60)
    poisoned, _ = poison(data, attack, rate=0.25, target=0, device=CPU)
    model = build(ModelCard("tiny_resnet", data.classes, data.size))
    train(
        model, poisoned.images, poisoned.labels, Recipe(epochs=12, batch=32, flip=False), device=CPU
    )
    bright = 255 - spots(64, seed=3)
    own = predict(model, attack.trigger(bright), device=CPU).argmax(1) == 0
    crossed = attack.plant_cover(bright, torch.Generator().manual_seed(0))
    other = predict(model, crossed, device=CPU).argmax(1) == 0
    assert own.float().mean() > other.float().mean() + 0.2


def test_a_single_cover_sample_does_not_get_its_own_trigger(
    attack: Attack, noise_images: ImagesMaker
) -> None:
    image = noise_images(1, 16)
    found = attack.plant_cover(image, torch.Generator().manual_seed(0))
    assert not torch.equal(found, attack.trigger(image))
    assert not torch.equal(found, image)


def test_no_images_stay_no_images(attack: Attack, noise_images: ImagesMaker) -> None:
    none = noise_images(0)
    assert attack.trigger(none).shape == (0, 3, 32, 32)
    assert attack.plant_cover(none, torch.Generator()).shape == (0, 3, 32, 32)


def test_the_seed_decides_the_nets(noise_data: DataMaker) -> None:
    before = torch.get_rng_state()
    first, again, other = (prepared(noise_data(), seed=seed).state for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.5])
def test_cover_samples_keep_their_labels(
    tmp_path: Path, noise_data: DataMaker, noise_images: ImagesMaker, ratio: float
) -> None:
    data = noise_data(size=16)
    attack = make_attack("input-aware", cross_ratio=ratio, **QUICK)
    poisoned, manifest = poison(data, attack, rate=0.2, device=CPU)
    assert len(manifest.cover) == round(8 * ratio)
    assert torch.equal(poisoned.labels[manifest.cover], data.labels[manifest.cover])
    changed = (poisoned.images != data.images).flatten(1).any(1).nonzero()[:, 0].tolist()
    assert changed == sorted(manifest.poison + manifest.cover)
    assert torch.equal(
        poisoned.images[manifest.poison], attack.trigger(data.images[manifest.poison])
    )
    write_poisoned(tmp_path, poisoned, attack, manifest)
    found, _ = read_poisoned(tmp_path)
    assert found == attack
    assert torch.equal(found.trigger(noise_images()), attack.trigger(noise_images()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"density": 0.0}, "density must be in"),
        ({"density": 1.1}, "density must be in"),
        ({"density": float("nan")}, "density must be in"),
        ({"cross_ratio": -1.0}, "cross_ratio must be finite and at least 0"),
        ({"cross_ratio": float("inf")}, "cross_ratio must be finite"),
        ({"diversity": -0.1}, "diversity must be finite and at least 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"mask_steps": 0}, "mask_steps must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"input-aware: {message}"):
        make_attack("input-aware", **parameters)
