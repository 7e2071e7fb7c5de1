"""The training loop against its limit (ready batches) and against a usual loop."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import Times, Work, in_turns
from benchmarks.plain import Encoded, augmented, endless, steps
from cgd.data import ImageData
from cgd.models import Classifier, ModelCard, build
from cgd.training import Recipe, autocast, make_optimizer, place, train

BATCH = 128
RECIPE = Recipe(epochs=1, batch=BATCH, min_steps=0)
STEPS = {"small_resnet": 20, "preactresnet18": 1}
"""Steps a repetition."""


def loop(
    data: ImageData, arch: str, count: int, repetitions: int, device: torch.device
) -> dict[str, Times]:
    """Time `count` steps of each contender, the same network and optimiser.

    Returns:
        `limit`: forward, backward and step on batches that are ready on the device; `cgd`: the
        project's loop; `torchvision`: PIL transforms in two workers, fp32.
    """
    rows = torch.arange(count * BATCH) % len(data)
    images, labels = data.images[rows], data.labels[rows]
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
    runs = {
        "limit": lambda: bare_steps(bare, ready, bare_optimizer, device),
        "cgd": lambda: train(ours, images, labels, RECIPE, device=device),
        "torchvision": lambda: steps(usual.net, feed, count, usual_optimizer, device),
    }
    works = {name: Work(run, len(rows)) for name, run in runs.items()}
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
) -> None:
    """Forward, backward and step on batches that are ready on the device."""
    place(model, device)
    model.train()
    for images, labels in ready:
        with autocast(device):
            logits = model.net(images).float()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
