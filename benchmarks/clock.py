"""Timing in turns: contenders run A B A B ..., so that other load on the machine hits all alike."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes:
        run: does it once.
        images: that are worked on; 1 for work that is timed as a whole.
    """

    run: Callable[[], object]
    images: int = 1


@dataclass(frozen=True)
class Times:
    """Measured seconds an image, a number a repetition.

    Attributes:
        seconds: on a CPU, processor seconds of this process: what waits, for other programs or
            for the workers of a data loader, is not counted. On a GPU, wall time.
        images: a repetition.
    """

    seconds: list[float]
    images: int

    @property
    def median(self) -> float:
        """Seconds an image."""
        return float(np.median(self.seconds))


def in_turns(
    works: Mapping[Name, Work], repetitions: int, device: torch.device
) -> dict[Name, Times]:
    """Time every piece of work `repetitions` times, in turns, after one turn that is not timed."""
    times = {name: Times([], work.images) for name, work in works.items()}
    for turn in range(repetitions + 1):
        for name, work in works.items():
            start = clock(device)
            work.run()
            if turn:
                times[name].seconds.append((clock(device) - start) / work.images)
    return times


def clock(device: torch.device) -> float:
    """Seconds, as `Times` counts them."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """How many times faster, turn by turn."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def spread(values: list[float]) -> str:
    """Median, least and greatest.

    >>> spread([3.0, 1.0, 2.5])
    '2.50 (1.00 to 3.00)'
    """
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
