"""Recorded steps against those that are taken as usual: simulated, and on a GPU where one is."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cgd import steps, training, unlearn
from cgd.data import ImageData
from cgd.models import Classifier, ModelCard, build
from cgd.split import Split
from cgd.steps import Recorder, set_rate, take_step
from cgd.training import Recipe, recorder_for, train

DataMaker = Callable[..., ImageData]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SGD = Recipe(epochs=4, batch=24, min_steps=0, lr=0.05)
ADAM = replace(SGD, optimizer="adam", lr=3e-3, schedule="constant")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_a_step_goes_down_the_gradient() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    loss = take_step(lambda factor: (factor * weight).square().sum(), torch.tensor(2.0), optimizer)
    assert float(loss) == 36
    assert weight.item() == 3 - 0.5 * 2 * 4 * 3


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_the_rate_is_set(rate: float | Tensor) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    set_rate(optimizer, 0.25)
    assert float(optimizer.param_groups[0]["lr"]) == 0.25
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor) == isinstance(rate, Tensor)


def test_nothing_is_recorded_where_images_lie_on_the_cpu() -> None:
    assert recorder_for(torch.zeros(1, 3, 8, 8)) is None


class Generator:
    """In the place of a GPU's: notes what state it was given."""

    def __init__(self, *device: object) -> None:
        self.states: list[object] = []

    def get_state(self) -> str:
        return "drawn"

    def graphsafe_get_state(self) -> object:
        return self.states[-1]

    def set_state(self, state: object) -> None:
        self.states.append(state)

    graphsafe_set_state = set_state


class Recording:
    """In the place of a CUDA graph: does what it is said to record when it is replayed."""

    now: "Recording | None" = None
    replayed = 0

    def replay(self) -> None:
        Recording.replayed += 1
        self.loss.copy_(take_step(*self.step))

    def take_step(self, *step: Any) -> Tensor:
        self.step, self.loss = step, torch.zeros(())
        return self.loss


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Generator:
    """Steps are recorded and replayed, on the CPU; returns the generator of the device."""

    @contextmanager
    def graph(recording: Recording, stream: object) -> Iterator[None]:
        monkeypatch.setattr(steps, "take_step", recording.take_step)
        try:
            yield
        finally:
            monkeypatch.setattr(steps, "take_step", take_step)

    generator = Generator()
    monkeypatch.setattr(Recording, "replayed", 0)
    for name, fake in {
        "Stream": MagicMock(),
        "stream": lambda stream: nullcontext(),
        "current_stream": MagicMock(),
        "current_device": lambda: 0,
        "default_generators": (generator,),
        "CUDAGraph": Recording,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    return generator


def learned(recorder: Recorder | None, make: Callable[..., Any], change: Any = None) -> Tensor:
    """Twelve steps of a line towards random points, every fifth with a smaller batch."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = make([weight], lr=0.1, fused=True)
    draw = torch.default_generator.__class__().manual_seed(0)
    for number in range(12):
        batch = (torch.rand(2 if number % 5 == 4 else 4, 3, generator=draw),)
        set_rate(optimizer, 0.1 / (1 + number))
        (recorder or take_step)(
            lambda drawn: (
                ((drawn[0] * weight).sum(1) - (change() if change else 2)).square().mean()
            ),
            batch,
            optimizer,
        )
    return weight.detach()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=["sgd", "adam"])
def test_replayed_steps_learn_what_usual_ones_do(
    make: Callable[..., Any], simulated: Generator
) -> None:
    usual = learned(None, make)
    assert torch.equal(learned(Recorder(CPU), make), usual)
    assert Recording.replayed == 12 - 2 - steps.WARM_UP
    assert not simulated.states


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_recording_leaves_everything_as_it_was(
    failure: type[BaseException], simulated: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    recorder, count = Recorder(CPU), 0

    def loss_of(batch: tuple[Tensor]) -> Tensor:
        return (batch[0] * weight).sum()

    def take(*step: Any) -> Tensor:
        raise failure("it waits")

    for count in range(6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recording, "take_step", take)
            expected = failure is KeyboardInterrupt and count >= steps.WARM_UP
            with pytest.raises(KeyboardInterrupt) if expected else nullcontext():
                recorder(loss_of, (torch.ones(3),), optimizer)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["capturable"]) == (0.1, False)
    assert set(simulated.states) == {"drawn"}
    said = capsys.readouterr().err
    assert said.count("not recorded, and take longer: it waits") == (failure is RuntimeError)
    moved = count + 1 if failure is RuntimeError else steps.WARM_UP
    assert weight.detach() == pytest.approx(1 - 0.1 * moved, abs=1e-4)


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, lambda _: [random.random()]])
@pytest.mark.usefixtures("simulated")
def test_what_draws_on_the_host_is_not_recorded(
    draw: Callable[[int], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    learned(Recorder(CPU), torch.optim.SGD, lambda: float(draw(1)[0]))
    assert Recording.replayed == 0
    assert capsys.readouterr().err.count("draws at random on the host") == 1


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a replayed step. Convolutions are computed in the same way each time."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    counted: list[int] = []

    class Counting(torch.cuda.CUDAGraph):
        def replay(self) -> None:
            counted.append(1)
            super().replay()

    monkeypatch.setattr(steps.torch.cuda, "CUDAGraph", Counting)
    return counted


def usual(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (training, unlearn):
        monkeypatch.setattr(module, "recorder_for", lambda images: None)


def trained(data: ImageData, recipe: Recipe, model: Classifier | None = None) -> Classifier:
    model = model or build(ModelCard("tiny_resnet", data.classes, data.size))
    return train(model, data.images, data.labels, recipe, device=GPU)


def distance(a: nn.Module, b: nn.Module) -> float:
    ours, theirs = a.state_dict(), b.state_dict()
    return max(float((ours[key].float() - theirs[key].float()).abs().max()) for key in ours)


@needs_gpu
@pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
def test_replayed_training_equals_the_usual_one(
    recipe: Recipe, toy_data: DataMaker, replays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy_data(100)  # four whole batches an epoch, and a smaller one
    replayed = trained(data, recipe)
    assert len(replays) == 4 * recipe.epochs - steps.WARM_UP
    usual(monkeypatch)
    expected = trained(data, recipe)
    assert distance(replayed, build(expected.card).to(GPU)) > 0.05
    assert distance(replayed, expected) < 1e-3


@needs_gpu
def test_a_killed_training_goes_on_and_is_recorded_again(
    toy_data: DataMaker, replays: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, state = toy_data(96), tmp_path / "state"
    whole = trained(data, SGD)
    model = build(ModelCard("tiny_resnet", data.classes, data.size))

    class Killed(BaseException): ...

    def die(epoch: int) -> None:
        if epoch == 3:
            raise Killed

    options = {"device": GPU, "checkpoint": state}
    with pytest.raises(Killed):
        train(model, data.images, data.labels, SGD, after_epoch=die, **options)  # type: ignore[arg-type]
    replays.clear()
    resumed = train(model, data.images, data.labels, SGD, **options)  # type: ignore[arg-type]
    assert replays
    assert distance(resumed, whole) < 1e-3


@needs_gpu
def test_a_network_that_waits_for_the_device_is_trained_as_usual(
    toy_data: DataMaker, replays: list[int]
) -> None:
    class Waiting(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits * float(logits.detach().abs().max() > 0)

    data = toy_data(96)
    card = ModelCard("tiny_resnet", data.classes, data.size)
    model = trained(data, SGD, Classifier(Waiting(build(card).net), card))
    assert not replays
    assert distance(model.net.net, trained(data, SGD).net) < 1e-3  # type: ignore[arg-type]
    replays.clear()
    dropping = Waiting(nn.Sequential(build(card).net, nn.Dropout(0.5)))
    trained(data, SGD, Classifier(dropping, card))
    assert not replays
    drawn = torch.rand(2, 5, device=GPU)  # the generator was left in a state that draws
    assert len(drawn.unique()) == 10


@needs_gpu
def test_dropout_draws_anew_in_every_replay_and_from_the_seed(
    toy_data: DataMaker, replays: list[int]
) -> None:
    data = toy_data(96)
    card = ModelCard("tiny_resnet", data.classes, data.size)

    def dropping() -> Classifier:
        return Classifier(nn.Sequential(build(card).net, nn.Dropout(0.5)), card)

    masks: list[float] = []
    once = trained(data, SGD, dropping())
    assert replays
    again = trained(data, SGD, dropping())
    assert distance(once, again) < 1e-3
    model = dropping().to(GPU).train()
    recorder, x = recorder_for(data.images.to(GPU)), torch.ones(24, 3, device=GPU)
    assert recorder
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    weight = next(model.parameters())
    for _ in range(12):
        loss = recorder(
            lambda batch: model.net[1](batch[0]).sum() + 0 * weight.sum(), (x,), optimizer
        )
        masks.append(float(loss))
    assert len(set(masks[steps.WARM_UP :])) > 3


@needs_gpu
def test_replayed_unlearning_equals_the_usual_one(
    toy_data: DataMaker, replays: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy_data(200)
    model, rows = trained(data, SGD), np.arange(200)
    split = Split(clean=rows[:160], triggered=rows[160:], unused=rows[:0])
    guide = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    recipe = replace(
        unlearn.RETARGET, rounds=3, steps=6, clean_batch=32, triggered_batch=16, transplanted=8
    )

    def repaired() -> unlearn.Repair:
        return unlearn.unlearn(model, data, split, guide, recipe, device=GPU)

    replays.clear()
    replayed = repaired()
    assert len(replays) == 18 - steps.WARM_UP
    usual(monkeypatch)
    expected = repaired()
    assert distance(replayed.model, model) > 0.01
    assert distance(replayed.model, expected.model) < 1e-3
    assert replayed.images == expected.images
