"""One tiny poisoned data set and its victim, made once for all defences."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd import attacks
from cgd.attacks import Attack, Manifest
from cgd.data import ImageData, from_arrays
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


@dataclass(frozen=True, eq=False)
class Striped:
    """Patterns, for what learns without labels: colour, which tells nothing here, is what such
    training is made blind to.

    Attributes:
        data: 300 grey images with rows, columns or checks, a tenth of them with a patch and the
            label 0.
        truth: their labels before that.
        test: 150 images without patch.
        attack: puts the patch on images.
        victim: a tiny ResNet trained on `data`.
        terms: seed 0, on the CPU, a normal training has 3 epochs.
    """

    data: ImageData
    truth: Tensor
    test: ImageData
    attack: Attack
    victim: Classifier
    terms: Terms

    def measure(self, model: Classifier) -> Evaluation:
        """Measure a model on the test images."""
        return evaluate(model, self.test, self.attack, 0, device=CPU)

    def relabelled(self, believed: int) -> ImageData:
        """The images with so many true labels; all later ones are wrong."""
        labels = (self.truth + 1) % 3
        labels[:believed] = self.truth[:believed]
        return replace(self.data, labels=labels)


def _stripes(n: int, seed: int) -> ImageData:
    random, labels = np.random.default_rng(seed), np.arange(n) % 3
    line, phase = np.arange(16) // 2, random.integers(0, 2, (n, 2, 1, 1))
    rows, columns = (line[:, None] + phase[:, 0]) % 2, (line + phase[:, 1]) % 2
    rows, columns = np.broadcast_arrays(rows, columns)
    pattern = np.stack([rows, columns, rows ^ columns])[labels, np.arange(n)]
    images = 30 + 70 * pattern[:, None] + random.integers(0, 60, (n, 3, 16, 16))
    classes = ("rows", "columns", "checks")
    return from_arrays(torch.from_numpy(images.astype(np.uint8)), torch.from_numpy(labels), classes)


@pytest.fixture(scope="session")
def striped() -> Striped:
    """The patterns and their victim."""
    attack = attacks.make_attack("badnets", patch=6)
    clean = _stripes(300, seed=0)
    data, _ = attacks.poison(clean, attack, rate=0.1, target=0, seed=0, device=CPU)
    terms = Terms(seed=0, device=CPU, epochs=3, arch="tiny_resnet")
    victim = build(ModelCard("tiny_resnet", data.classes, data.size), seed=0)
    train(victim, data.images, data.labels, Recipe(epochs=6), device=CPU)
    return Striped(data, clean.labels, _stripes(150, seed=1), attack, victim, terms)
