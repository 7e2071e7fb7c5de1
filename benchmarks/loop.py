"""The training loop against its limit (ready batches) and against a usual loop."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import Times, Work, in_turns
from benchmarks.plain import Encoded, augmented, endless, steps
from cgd.data import ImageData
from cgd.memory import memory_kept
from cgd.models import Classifier, ModelCard, build
from cgd.steps import Recorder, take_step
from cgd.training import Recipe, autocast, make_optimizer, place, train

BATCH = 128
RECIPE = Recipe(epochs=1, batch=BATCH, min_steps=0, lr=0.01)
STEPS = {"small_resnet": 20, "preactresnet18": 1}
"""Steps a repetition."""
STEPS_ON_GPU = {"small_resnet": 2000, "preactresnet18": 500}
USUAL_STEPS = 40
"""Of the usual loop, at most."""


def loop(
    data: ImageData, arch: str, count: int, repetitions: int, device: torch.device
) -> dict[str, Times]:
    """Time `count` steps of each contender, the same network and optimiser.

    Returns:
        `limit`: forward, backward and step on batches that are ready on the device; on a GPU
        `replayed limit`: the same as a CUDA graph; `cgd`: the project's loop; `torchvision`: PIL
        transforms in two workers, fp32.
    """
    rows = torch.arange(count * BATCH) % len(data)
    images, labels = data.images[rows].to(device), data.labels[rows]
    ours, bare, usual = (fresh(arch, data, device) for _ in range(3))
    ready = [
        (prepared(bare, part.to(device)), given.to(device))
        for part, given in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True)
    ]
    feed = endless(Encoded(data, augmented(data.size)), min(BATCH, len(data)), workers=2)
    bare_optimizer, usual_optimizer = (
        make_optimizer(bare, RECIPE),
        torch.optim.SGD(
            usual.parameters(), RECIPE.lr, 0.9, weight_decay=RECIPE.weight_decay, nesterov=True
        ),
    )
    some = min(count, USUAL_STEPS)
    works = {
        "limit": Work(lambda: bare_steps(bare, ready, bare_optimizer, device), len(rows)),
        "cgd": Work(lambda: train(ours, images, labels, RECIPE, device=device), len(rows)),
        "torchvision": Work(
            lambda: steps(usual.net, feed, some, usual_optimizer, device), some * BATCH
        ),
    }
    if device.type == "cuda":
        again = fresh(arch, data, device)
        optimizer, recorder = make_optimizer(again, RECIPE), Recorder(device)
        works["replayed limit"] = Work(
            lambda: bare_steps(again, ready, optimizer, device, recorder), len(rows)
        )
    return in_turns(works, repetitions, device)


def fresh(arch: str, data: ImageData, device: torch.device) -> Classifier:
    """Build an untrained network for the data, on the device."""
    return build(ModelCard(arch, data.classes, data.size)).to(device)


def prepared(model: Classifier, images: Tensor) -> Tensor:
    """Normalise images as the model does."""
    normal = torch.addcmul(model.shift, images.float(), model.scale)
    return normal.contiguous(memory_format=torch.channels_last)


def bare_steps(
    model: Classifier,
    ready: list[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    recorder: Recorder | None = None,
) -> None:
    """Forward, backward and step on batches that are ready on the device."""
    place(model, device)
    model.train()

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        with autocast(device):
            logits = model.net(images).float()
        return F.cross_entropy(logits, labels)

    with memory_kept():
        for batch in ready:
            (recorder or take_step)(loss_of, batch, optimizer)
