"""Adaptive-Blend and Adaptive-Patch: weak parts in training, the whole trigger in testing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cgd.attacks import make_attack
from cgd.attacks.adaptive_patch import OPACITIES
from cgd.attacks.blended import blend
from cgd.errors import InputError

ImagesMaker = Callable[..., Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("kept", "shown"), [(0.5, 8), (0.25, 4), (0.01, 1), (1.0, 16)])
def test_training_samples_show_so_many_pieces_each_others(kept: float, shown: int) -> None:
    attack = make_attack("adaptive-blend", kept=kept, train_alpha=1.0)
    attack.state["pattern"].fill_(255)
    planted = attack.plant(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), generator())
    pieces = planted[:, 0].view(20, 4, 8, 4, 8).permute(0, 1, 3, 2, 4).flatten(3)
    assert (pieces.amin(3) == pieces.amax(3)).all()
    assert (pieces[..., 0] > 0).sum((1, 2)).tolist() == [shown] * 20
    if shown < 16:
        assert len({tuple(image.flatten().tolist()) for image in planted}) > 1


def test_the_test_trigger_is_the_whole_pattern(noise_images: ImagesMaker) -> None:
    attack, images = make_attack("adaptive-blend", alpha=0.3), noise_images()
    assert torch.equal(attack.trigger(images), blend(images, attack.state["pattern"], 0.3))


def test_a_training_sample_has_one_faint_patch(noise_images: ImagesMaker) -> None:
    attack, images = make_attack("adaptive-patch"), noise_images(40)
    planted = attack.plant(images, generator())
    patches = attack.state["patches"]
    seen = set()
    for before, after in zip(images, planted, strict=True):
        corners = []
        for number, (top, left) in enumerate(((0, 0), (0, 24), (24, 0), (24, 24))):
            place = (..., slice(top, top + 8), slice(left, left + 8))
            if not torch.equal(before[place], after[place]):
                mixed = blend(before[place][None], patches[number], OPACITIES[number])[0]
                assert torch.equal(after[place], mixed)
                corners.append(number)
        assert len(corners) == 1
        seen.add(corners[0])
        assert torch.equal(before[:, 8:24], after[:, 8:24])
    assert seen == {0, 1, 2, 3}


def test_a_test_image_has_two_opaque_patches(noise_images: ImagesMaker) -> None:
    attack, images = make_attack("adaptive-patch"), noise_images(3)
    found = attack.trigger(images)
    for rows, number in ((slice(0, 8), 0), (slice(24, 32), 2)):
        assert torch.equal(found[0, :, rows, :8], found[1, :, rows, :8])
        opaque = blend(images[:1, :, rows, :8], attack.state["patches"][number], 1.0)
        assert torch.equal(found[:1, :, rows, :8], opaque)
    assert torch.equal(found[..., 8:], images[..., 8:])


def test_patches_that_meet_are_refused(noise_images: ImagesMaker) -> None:
    with pytest.raises(InputError, match="patches of 17 pixels do not fit 32-pixel images"):
        make_attack("adaptive-patch", patch=17).trigger(noise_images(1))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("adaptive-blend", {"alpha": 0.0}),
        ("adaptive-blend", {"train_alpha": 1.5}),
        ("adaptive-blend", {"kept": 0.0}),
        ("adaptive-blend", {"pieces": 0}),
        ("adaptive-blend", {"covers": -1.0}),
        ("adaptive-patch", {"patch": 0}),
        ("adaptive-patch", {"covers": -1.0}),
    ],
)
def test_bad_parameters_are_refused(name: str, parameters: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{name}: "):
        make_attack(name, **parameters)
