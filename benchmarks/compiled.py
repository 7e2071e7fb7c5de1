"""Does `torch.compile` pay? The same forward, backward and step, as they are and compiled.

python -m benchmarks.compiled --data cifar10/train.parquet --out DIR
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.__main__ import head, table
from benchmarks.clock import Times, Work, in_turns, ratios, spread
from benchmarks.loop import BATCH, RECIPE, STEPS, bare_steps, fresh, prepared
from cgd.data import ImageData, load
from cgd.files import write_json, write_text
from cgd.training import make_optimizer, pick_device


@dataclass(frozen=True)
class Compiled:
    """What compiling brought.

    Attributes:
        start: seconds by the clock until the first compiled step was done.
        times: of `plain` and `compiled` steps.
    """

    start: float
    times: dict[str, Times]

    @property
    def gain(self) -> list[float]:
        """How many times faster the compiled steps are, turn by turn."""
        return ratios(self.times["plain"].seconds, self.times["compiled"].seconds)


def compare(
    data: ImageData,
    arch: str,
    count: int,
    repetitions: int,
    device: torch.device,
    backend: str = "inductor",
) -> Compiled:
    """Time `count` steps on one batch that is ready on the device."""
    runs = {}
    for name in ("plain", "compiled"):
        model = fresh(arch, data, device)
        ready = [(prepared(model, data.images[:BATCH].to(device)), data.labels[:BATCH].to(device))]
        optimizer = make_optimizer(model, RECIPE)
        start = time.perf_counter()
        if name == "compiled":
            model.net.compile(backend=backend)
            bare_steps(model, ready, optimizer, device)
        started = time.perf_counter() - start
        steps = partial(bare_steps, model, ready * count, optimizer, device)
        runs[name] = Work(steps, count * len(ready[0][1]))
    return Compiled(started, in_turns(runs, repetitions, device))


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, print the table, and write it with the raw numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10: whatever `cgd scan` takes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args(arguments)
    device, data = pick_device(asked.device), load(asked.data)
    found = {
        arch: compare(data, arch, count, asked.repetitions, device) for arch, count in STEPS.items()
    }
    rows = [
        [arch, *(f"{1 / t.median:,.0f}" for t in one.times.values()), spread(one.gain),
         f"{one.start:.0f}"]
        for arch, one in found.items()
    ]  # fmt: skip
    columns = ["network", "plain, images/s", "compiled, images/s", "faster by", "start, s"]
    print(table(columns, rows))
    write_text(asked.out / "compiled.md", table(columns, rows))
    record = head(device, asked.repetitions)
    record["networks"] = {arch: asdict(one) for arch, one in found.items()}
    write_json(asked.out / "compiled.json", record)


if __name__ == "__main__":
    main()
