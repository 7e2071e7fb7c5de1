"""Optimiser steps; on a GPU one is recorded as a CUDA graph, and replayed from then on.

A step is hundreds of kernels, which a GPU computes sooner than Python starts them where network or
images are small. Replayed, they start at once.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cgd import processes
from cgd.progress import say
from cgd.text import first_line

WARM_UP = 3
"""Steps that are taken as usual first: libraries and optimisers allocate in them what they keep."""


def take_step(
    loss_of: Callable[[Any], Tensor], batch: Any, optimizer: torch.optim.Optimizer
) -> Tensor:
    """Take one step down the gradient of `loss_of(batch)`; returns that loss, on the device."""
    loss = loss_of(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    processes.average_gradients(optimizer)
    optimizer.step()
    return loss.detach()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate; of a recorded step too."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Recorder:
    """Takes steps as `take_step` does, on a GPU, much sooner.

    All that a step depends on must be in its batch, a tuple of tensors, or stay where it is on the
    device. Steps are taken as usual where a batch has another shape than the first, and where the
    network cannot be recorded: it waits for the device, or draws at random on the host. What else
    of it changes from step to step on the host alone, such as a counter, would not be noticed.
    One recorder serves one loss and one optimiser.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._shapes: list[torch.Size] = []
        self._usual = 0
        self._fit = True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: tuple[Tensor, ...] = ()
        self._loss = torch.empty(0)

    def __call__(
        self,
        loss_of: Callable[[Any], Tensor],
        batch: Any,
        optimizer: torch.optim.Optimizer,
    ) -> Tensor:
        shapes = [part.shape for part in batch]
        self._shapes = self._shapes or shapes
        if shapes != self._shapes or not self._fit:
            return take_step(loss_of, batch, optimizer)
        if self._usual < WARM_UP:
            self._usual += 1
            return self._usually(loss_of, batch, optimizer)
        if self._graph is None and not self._record(loss_of, batch, optimizer):
            return take_step(loss_of, batch, optimizer)
        assert self._graph
        for place, part in zip(self._batch, batch, strict=True):
            place.copy_(part if part.is_cuda else part.pin_memory(), non_blocking=True)
        self._graph.replay()
        return self._loss

    def _usually(
        self,
        loss_of: Callable[[Any], Tensor],
        batch: tuple[Tensor, ...],
        optimizer: torch.optim.Optimizer,
    ) -> Tensor:
        """Take a step on the stream that is recorded later: gradients must be used to it."""
        current, before = torch.cuda.current_stream(self._device), _host_generators()
        self._beside.wait_stream(current)
        with torch.cuda.stream(self._beside):
            loss = take_step(loss_of, batch, optimizer)
        current.wait_stream(self._beside)
        if self._fit and before != _host_generators():
            self._give_up("the network draws at random on the host")
        return loss

    def _give_up(self, reason: str) -> None:
        self._fit = False
        say(f"steps are not recorded, and take longer: {reason}")

    def _record(
        self,
        loss_of: Callable[[Any], Tensor],
        batch: tuple[Tensor, ...],
        optimizer: torch.optim.Optimizer,
    ) -> bool:
        """Record a step without taking it; tells whether that could be done."""
        graph = torch.cuda.CUDAGraph()
        self._batch = tuple(part.to(self._device, copy=True) for part in batch)
        try:
            with (
                _recordable(optimizer, self._device),
                torch.cuda.graph(graph, stream=self._beside),
            ):
                self._loss = take_step(loss_of, self._batch, optimizer)
        except RuntimeError as error:
            self._give_up(first_line(error))
            return False
        self._graph = graph
        return True


@contextmanager
def _recordable(optimizer: torch.optim.Optimizer, device: torch.device) -> Iterator[None]:
    """Let the rate of a recorded step be set, and Adam be recorded.

    Where recording fails, rates are numbers again, and the device's generator, which torch leaves
    as if it were still recorded, draws again.
    """
    groups: list[dict[str, Any]] = optimizer.param_groups
    index = torch.cuda.current_device() if device.index is None else device.index
    own = torch.cuda.default_generators[index]
    rates, drawn = [group["lr"] for group in groups], own.get_state()
    adams = [group for group in groups if "capturable" in group]
    for group in groups:
        group["lr"] = torch.tensor(group["lr"], device=device)
    for group in adams:
        group["capturable"] = True  # outside it would be warned of
    try:
        yield
    except BaseException:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        fresh = torch.Generator(device)
        fresh.set_state(drawn)
        own.graphsafe_set_state(fresh.graphsafe_get_state())
        raise
    finally:
        for group in adams:
            group["capturable"] = False


def _host_generators() -> tuple[Any, ...]:
    """The states of all that a network may draw from at random on the host."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        repr(np.random.get_state(legacy=False)),  # noqa: NPY002 (a network may use it)
    )
