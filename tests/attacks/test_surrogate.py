"""An attacker's own model: follows the seed, and is not the victim."""

from collections.abc import Callable

import torch

from cgd.attacks.surrogate import ARCH, train_surrogate
from cgd.data.dataset import ImageData
from cgd.models import Classifier, ModelCard, build
from cgd.training import Recipe, train

DataMaker = Callable[..., ImageData]
CPU = torch.device("cpu")


def test_it_is_no_twin_of_a_victim_that_is_trained_alike(noise_data: DataMaker) -> None:
    data = noise_data(size=16)

    def surrogate(seed: int) -> Classifier:
        return train_surrogate(data, epochs=1, seed=seed, device=CPU, label="test")

    victim = build(ModelCard(ARCH, data.classes, data.size), seed=0)
    recipe = Recipe(epochs=1, flip=False)
    train(victim, data.images, data.labels, recipe, seed=0, device=CPU)
    first, again, other = (surrogate(seed).net.state_dict() for seed in (0, 0, 1))
    weight = next(name for name in first if name.endswith("weight"))
    assert torch.equal(first[weight], again[weight])
    assert not torch.equal(first[weight], other[weight])
    assert not torch.equal(first[weight], victim.net.state_dict()[weight])
