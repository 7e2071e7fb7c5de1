"""What attackers who learn their trigger share."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from cgd.progress import track


def random_batches(
    n: int, steps: int, generator: Generator, *, label: str, batch: int = 64
) -> Iterator[Tensor]:
    """Yield int64 row numbers below `n`, drawn anew each step, and show how far along they are.

    >>> from cgd.training import seeded
    >>> [len(rows) for rows in random_batches(5, 3, seeded(0), label="learning", batch=8)]
    [5, 5, 5]
    """
    for _ in track(range(steps), label):
        yield torch.randperm(n, generator=generator)[:batch]
