"""One tiny poisoned data set and its victim, made once for all defences."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from cgd import attacks
from cgd.attacks import Attack, Manifest
from cgd.data import ImageData
from cgd.defenses import Terms
from cgd.evaluation import Evaluation, evaluate
from cgd.models import Classifier, ModelCard, build
from cgd.training import Recipe, train

CPU = torch.device("cpu")
DataMaker = Callable[..., ImageData]


@dataclass(frozen=True, eq=False)
class World:
    """What a defence is tried on.

    Attributes:
        data: 600 images of 3 classes, a tenth of them with a patch and the label 0.
        manifest: which.
        clean: 150 other images without poison.
        test: 300 more.
        attack: puts the patch on images.
        victim: a tiny ResNet trained on `data`; not to be changed.
        before: how it behaves: the patch works.
        terms: seed 1, on the CPU, a normal training has 8 epochs.
    """

    data: ImageData
    manifest: Manifest
    clean: ImageData
    test: ImageData
    attack: Attack
    victim: Classifier
    before: Evaluation
    terms: Terms

    def measure(self, model: Classifier) -> Evaluation:
        """Measure a model on the test images."""
        return evaluate(model, self.test, self.attack, 0, device=CPU)


@pytest.fixture(scope="session")
def world(toy_data: DataMaker) -> World:
    """The set, its victim, and what to measure with."""
    attack = attacks.make_attack("badnets")
    data, manifest = attacks.poison(
        toy_data(600, tint=20), attack, rate=0.1, target=0, seed=0, device=CPU
    )
    clean, test = toy_data(150, seed=1, tint=20), toy_data(300, seed=2, tint=20)
    terms = Terms(seed=1, device=CPU, epochs=8, arch="tiny_resnet")
    victim = build(ModelCard("tiny_resnet", data.classes, data.size), seed=0)
    train(victim, data.images, data.labels, Recipe(epochs=terms.epochs), device=CPU)
    before = evaluate(victim, test, attack, 0, device=CPU)
    assert before.ca is not None
    assert before.ca > 90
    assert before.asr is not None
    assert before.asr > 90
    return World(data, manifest, clean, test, attack, victim, before, terms)
