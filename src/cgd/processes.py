"""Several processes that compute one result, one a GPU, as `accelerate launch` starts them.

All run the same program on the same data from the same seeds, and so come to the same decisions.
What is heavy is divided among them: the images of a training step, of a prediction, of the guide.
The first process alone writes and speaks. One that was started alone, or that did not `join` the
others, does all of it.
"""

import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cgd.errors import InputError

LONGEST_WAIT = timedelta(hours=12)
PATIENCE = 5.0
"""Seconds."""

_device: torch.device | None = None
"""Of this process, once it has joined the others."""


def launched() -> bool:
    """Tell whether this process was started as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def join() -> None:
    """Compute together with the processes that were started along with this one, if there are any.

    Raises:
        InputError: accelerate is not installed.
    """
    global _device
    if not launched():
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InputError(
            "several processes at once need accelerate: pip install accelerate"
        ) from error
    # Some decode, or write, while others wait.
    _device = PartialState(timeout=LONGEST_WAIT).device
    if not is_first():
        sys.stdout, sys.stderr = StringIO(), StringIO()


def leave(failed: bool = False) -> None:
    """End what `join` began.

    Args:
        failed: others may wait for this process, so it must not wait for them. What went wrong is
            told, unless the launcher has ended this process by then since the first one failed too.
    """
    global _device
    if _device is None:
        return
    if not failed:
        dist.destroy_process_group()
    elif isinstance(sys.stderr, StringIO):
        time.sleep(PATIENCE)
        print(f"process {dist.get_rank()}: {sys.stderr.getvalue()[-2000:]}", file=sys.__stderr__)
        sys.stderr = sys.__stderr__
    _device = None


def own_device() -> torch.device | None:
    """The device that this process computes on with others; None where it computes alone."""
    return _device


def count() -> int:
    """Number of processes that compute together."""
    return 1 if _device is None else dist.get_world_size()


def is_first() -> bool:
    """Tell whether this process is the one that writes and speaks."""
    return _device is None or dist.get_rank() == 0


def own_folder(folder: Path) -> Path:
    """Where this process writes: the first one to `folder`, each other to a copy that vanishes.

    So all see the same files when they continue a killed run, and none those of another.
    """
    if _device is None:
        return folder
    if not is_first():
        copy = Path(tempfile.mkdtemp(prefix="cgd-")) / "run"
        atexit.register(shutil.rmtree, copy.parent, ignore_errors=True)
        if (folder / "config.json").is_file():  # else it is no run folder, and will be refused
            shutil.copytree(folder, copy)
        folder = copy
    dist.barrier()  # the first one changes nothing before the others have their copies
    return folder


def part(rows: int) -> slice:
    """Return this process's part of so many rows; if they do not go round, all have all of them.

    >>> part(10)
    slice(0, 10, None)
    """
    if rows < count() or _device is None:
        return slice(0, rows)
    ends = _ends(rows)
    rank = dist.get_rank()
    return slice(ends[rank], ends[rank + 1])


def gather(own: Tensor, rows: int) -> Tensor:
    """Put the parts of all processes together.

    Args:
        own: [m, ...], of the `part` of this process.
        rows: of all of them, n.

    Returns:
        [n, ...], on the device of `own`, the same in every process. Gradients pass; they are those
        of one process alone once `average_gradients` was called.
    """
    if rows < count() or _device is None:
        return own
    gathered: Tensor = _Gather.apply(own.to(_device), rows)
    return gathered.to(own.device)


def least(values: Tensor) -> Tensor:
    """Of numbers of which each process has its own, the least: the same in every process."""
    if _device is None:
        return values
    agreed = values.to(_device)
    dist.all_reduce(agreed, dist.ReduceOp.MIN)
    return agreed.to(values.device)


def forward(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Compute `model(images)` in training, divided among the processes.

    Batch normalisation takes its statistics over the whole batch. Of layers that draw at random,
    such as dropout, each process draws as if its part were the batch.

    Args:
        model: images [n, ...] -> logits [n, classes].
        images: the same in every process.

    Returns:
        float32 [n, classes], the same in every process.
    """
    if len(images) < count() or _device is None:
        return model(images).float()
    with _OverAllProcesses():
        own = model(images[part(len(images))]).float()
    return gather(own, len(images))


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace each gradient by its mean over the processes."""
    if _device is None:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / count()
    dist.all_reduce(flat)
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def _ends(rows: int) -> list[int]:
    """Where the parts begin, and where the last one ends."""
    return [rows * rank // count() for rank in range(count() + 1)]


class _Gather(torch.autograd.Function):
    """The parts of all processes, which then compute the same loss of them.

    Each has the gradient of its own part alone; that the mean over the processes is the whole
    gradient, it is multiplied by their number.
    """

    @staticmethod
    def forward(context: Any, own: Tensor, rows: int) -> Tensor:
        ends = _ends(rows)
        sizes = [end - start for start, end in pairwise(ends)]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[part(len(gradient))] * count(), None


class _Sum(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of what they want of it."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class _OverAllProcesses(TorchFunctionMode):
    """Batch normalisation, in whatever layer, with the statistics of all processes."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return (_batch_norm if function is F.batch_norm else function)(*args, **(kwargs or {}))


def _batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.batch_norm`, over the images [m, channels, ...] of all processes."""
    if not training:
        return F.batch_norm(images, running_mean, running_var, weight, bias, False, momentum, eps)
    wide, channels = images.float(), images.shape[1]
    rest, shape = [0, *range(2, images.dim())], [1, channels] + [1] * (images.dim() - 2)
    number = wide.new_tensor([images.numel() / channels])
    totals: Tensor = _Sum.apply(torch.cat([number, wide.sum(rest)]))
    n = totals[0].detach()
    mean = totals[1:] / n
    centred = wide - mean.view(shape)
    squares: Tensor = _Sum.apply(centred.square().sum(rest))
    variance = squares / n
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.detach().to(running_mean.dtype), momentum)
        unbiased = variance.detach() * n / (n - 1)
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    normalised = centred * scale.view(shape)
    normalised = normalised if bias is None else normalised + bias.view(shape)
    return normalised.to(images.dtype)
