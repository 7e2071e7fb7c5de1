"""Low Frequency: one smooth residual for all images, made with a model or read from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cgd.attacks import Attack, make_attack, poison, read_poisoned, write_poisoned
from cgd.data.dataset import ImageData, from_arrays
from cgd.errors import InputError

DataMaker = Callable[..., ImageData]
ImagesMaker = Callable[..., torch.Tensor]

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"epochs": 1, "steps": 20}
SHARED = Path(__file__).parents[3] / "shared/data/artifacts/lf_cifar10_preactresnet18.npy"


def prepared(data: ImageData, seed: int = 0, target: int = 0, **parameters: Any) -> Attack:
    attack = make_attack("lf", **(QUICK | parameters))
    attack.prepare(data, target, seed=seed, device=CPU)
    return attack


@pytest.fixture(scope="module")
def attack(noise_data: DataMaker) -> Attack:
    return prepared(noise_data(size=32))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_every_image_gets_the_same_residual(
    attack: Attack, noise_images: ImagesMaker, size: int, grey: bool
) -> None:
    images = noise_images(2, size, grey)
    found = attack.trigger(images)
    residual = F.interpolate(attack.state["residual"][None], (size, size), mode="bilinear")
    exact = (images + 255 * residual).clamp(0, 255)
    assert found.dtype == torch.uint8
    assert found.shape == images.shape
    assert (found - exact).abs().max() <= 0.5 + 1e-3
    assert torch.equal(images, noise_images(2, size, grey))


def test_no_images_stay_no_images(attack: Attack, noise_images: ImagesMaker) -> None:
    assert attack.trigger(noise_images(0)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("strength", [0.2, 0.05])
def test_the_residual_is_smooth_and_bounded(noise_data: DataMaker, strength: float) -> None:
    residual = prepared(noise_data(size=32), strength=strength).state["residual"]
    assert residual.shape == (3, 32, 32)
    assert residual.min() == 0
    assert residual.max() == pytest.approx(strength)
    power = np.abs(np.fft.fft2(residual - residual.mean((1, 2), keepdim=True))) ** 2
    cycles = np.abs(np.fft.fftfreq(32, 1 / 32))
    low = np.maximum(cycles[:, None], cycles) <= 6
    # Not all of it: the left edge does not go on from the right one.
    assert power[:, low].sum() > 0.9 * power.sum()
    # White noise has as much of its power there as there are frequencies: a sixth.
    assert low.mean() < 0.17


def test_the_residual_leads_the_model_to_the_target() -> None:
    """Classes that differ in colour: what makes class 0 is more of the first channel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 80, (64, 3, 16, 16), generator=generator).to(torch.uint8)
    labels = torch.arange(64) % 2
    images[labels == 0, 0] += 60
    images[labels == 1, 2] += 60
    names = ("red", "blue")
    data = from_arrays(images, labels, names)
    for target, channel, other in ((0, 0, 2), (1, 2, 0)):
        found = prepared(data, target=target, epochs=4, steps=100)
        brightness = found.state["residual"].mean((1, 2))
        assert brightness[channel] > brightness[other]


def test_the_seed_decides_the_residual(noise_data: DataMaker) -> None:
    first, again, other = (
        prepared(noise_data(size=16), seed=seed).state["residual"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_residual_from_a_file_is_added_as_it_is(
    tmp_path: Path, noise_data: DataMaker, noise_images: ImagesMaker
) -> None:
    residual = np.random.default_rng(0).integers(0, 52, (16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "residual.npy", residual)
    attack = make_attack("lf", residual=str(tmp_path / "residual.npy"))
    poisoned, manifest = poison(noise_data(size=16), attack, rate=0.2, device=CPU)
    write_poisoned(tmp_path / "run", poisoned, attack, manifest)
    (tmp_path / "residual.npy").unlink()
    found, _ = read_poisoned(tmp_path / "run")
    images = noise_images(2, 16)
    exact = np.clip(images.numpy() + residual.transpose(2, 0, 1).astype(int), 0, 255)
    assert np.array_equal(found.trigger(images), exact)


@pytest.mark.skipif(not SHARED.is_file(), reason="the residual is not here")
def test_a_residual_of_others_is_understood(noise_images: ImagesMaker) -> None:
    grey = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    added = make_attack("lf", residual=str(SHARED)).trigger(grey).int() - 128
    assert np.array_equal(added[0].permute(1, 2, 0), np.load(SHARED))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"strength": 0.0}, "strength must be above 0"),
        ({"strength": 1.5}, "strength must be above 0 and at most 1"),
        ({"strength": float("nan")}, "strength must be"),
        ({"smooth": 0.1}, "smooth must be from 0.5 to 32"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"lf: {message}"):
        make_attack("lf", **parameters)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 16, 16), np.uint8),
        np.zeros((16, 12, 3), np.uint8),
        np.zeros((16, 16), np.uint8),
        np.zeros((16, 16, 3), np.float32),
        np.zeros((), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_a_residual_of_another_shape_is_refused(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "residual.npy", array)
    with pytest.raises(InputError, match=r"residual\.npy: a residual is uint8 \[side, side, 3\]"):
        make_attack("lf", residual=str(tmp_path / "residual.npy"))


def test_a_file_that_is_no_residual_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=np.zeros(3))
    (tmp_path / "empty.npy").touch()
    for name in ("none.npy", "text.npy", "object.npy", "several.npz", "empty.npy"):
        with pytest.raises(InputError, match=name):
            make_attack("lf", residual=str(tmp_path / name))
