"""Optimiser steps; on a GPU one is recorded as a CUDA graph, and replayed from then on.

A step is hundreds of kernels, which a GPU computes sooner than Python starts them where network or
images are small. Replayed, they start at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cgd import processes

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


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let Adam be recorded; it warns when such steps are taken as usual."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    for group in groups:
        group["capturable"] = True
    yield
    for group in groups:
        group["capturable"] = False


def _renew_generator(device: torch.device) -> None:
    """Give the device a generator that draws: after a recording that failed, the old one does not."""
    own = torch.cuda.default_generators[device.index or torch.cuda.current_device()]
    fresh = torch.Generator(device).manual_seed(own.initial_seed())
    own.graphsafe_set_state(fresh.graphsafe_get_state())


class Recorder:
    """Takes steps as `take_step` does, on a GPU, much sooner.

    All that a step depends on must be in its batch, a tuple of tensors, or stay where it is on the
    device; and it may not wait for the device. Where it does, or a batch has another shape than the
    first, steps are taken as usual. One recorder serves one loss and one optimiser.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._shapes: list[torch.Size] = []
        self._usual = 0
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
        if shapes != self._shapes:
            return take_step(loss_of, batch, optimizer)
        if self._graph is None and self._usual == WARM_UP:
            self._record(loss_of, batch, optimizer)
        if self._graph is None:
            self._usual += 1
            return self._usually(loss_of, batch, optimizer)
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
        current = torch.cuda.current_stream(self._device)
        self._beside.wait_stream(current)
        with torch.cuda.stream(self._beside):
            loss = take_step(loss_of, batch, optimizer)
        current.wait_stream(self._beside)
        return loss

    def _record(
        self,
        loss_of: Callable[[Any], Tensor],
        batch: tuple[Tensor, ...],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._batch = tuple(part.to(self._device, copy=True) for part in batch)
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with _capturable(optimizer), torch.cuda.graph(graph, stream=self._beside):
                self._loss = take_step(loss_of, self._batch, optimizer)
        except RuntimeError:  # a network that waits for the device cannot be recorded
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            _renew_generator(self._device)
            return
        self._graph = graph
