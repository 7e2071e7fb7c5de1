"""The array core on many samples: seconds and peak memory, each part in a process of its own.

python -m benchmarks.core --out DIR
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.clock import spread
from cgd.data import from_arrays
from cgd.entropy import Axis, EntropyMap, axis, place, ranks
from cgd.files import write_json, write_text
from cgd.pipeline import Scan
from cgd.runs import write_scan
from cgd.split import balanced_order, released_split, score_split
from cgd.verdict import Verdict

CLASSES = 1000
ROWS = 4096
RUNS = (
    ("ranks and split", 1_000_000),
    ("ranks and split", 10_000_000),
    ("balanced order", 10_000_000),
    ("scores.parquet", 1_000_000),
    ("scores.parquet", 10_000_000),
    ("logits in blocks", 100_000),
    ("logits in blocks", 1_000_000),
)
"""What is timed, and on how many samples."""


def entropies(n: int, seed: int) -> Axis:
    """What a model might say about n samples, not yet ranked."""
    generator = np.random.default_rng(seed)
    values = generator.exponential(size=n)
    return Axis(generator.integers(0, CLASSES, n), values, values)


def mapped(guide: Axis, suspect: Axis) -> EntropyMap:
    """Rank both axes."""
    guide, suspect = (replace(one, rank=ranks(one.entropy)) for one in (guide, suspect))
    return place(guide, suspect, torch.from_numpy(suspect.label))


def logit_blocks(n: int) -> Iterator[Tensor]:
    """n x CLASSES logits: one float16 block, made float32 again each time as if it were read."""
    block = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)).half()
    for start in range(0, n, ROWS):
        yield block[: n - start].float()


def work(part: str, n: int, out: Path) -> Callable[[], object]:
    """Prepare a part; what is returned does it."""
    if part == "logits in blocks":
        labels = torch.arange(n) % CLASSES
        return lambda: axis(logit_blocks(n), labels)
    guide, suspect = entropies(n, 0), entropies(n, 1)
    if part == "balanced order":
        return lambda: balanced_order(guide.label, np.random.default_rng(0))
    if part == "ranks and split":

        def both() -> None:
            found = mapped(guide, suspect)
            score_split(found)
            released_split(found, nothing(n))

        return both
    found = mapped(guide, suspect)
    scan = Scan(found, nothing(n), score_split(found), torch.empty(0), {}, 0.0, "")
    few = from_arrays(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), torch.zeros(1), ["a", "b"])
    data = replace(few, labels=torch.from_numpy(found.label), index=np.arange(n), paths=Names(n))
    return lambda: write_scan(out, data, scan)


def nothing(n: int) -> Verdict:
    """Say that there is no sign of poison."""
    return Verdict("none", (), (), np.zeros(n), np.zeros(n))


class Names(Sequence[str]):
    """n made-up paths, none of them in memory."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Any) -> Any:
        return [f"n{row % CLASSES:08}/{row:08}.jpg" for row in range(*rows.indices(self.n))]


def measure(part: str, n: int) -> dict[str, float]:
    """Do a part in this process."""
    with tempfile.TemporaryDirectory() as folder:
        run = work(part, n, Path(folder))
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_process(part: str, n: int) -> dict[str, float]:
    """Do a part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.core", "--part", part, "--samples", str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def markdown(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    lines = [
        "| part | samples | wall, s | CPU, s | peak memory of the process, MiB |",
        "|---|---|---|---|---|",
    ]
    for row in records:
        wall, cpu, peak = (
            [run[key] for run in row["runs"]] for key in ("wall_s", "cpu_s", "peak_mib")
        )
        lines.append(
            f"| {row['part']} | {row['samples']:,} | {spread(wall)} | {spread(cpu)} "
            f"| {max(peak):.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.samples)))
        return
    if options.out is None:
        parser.error("name a folder for the records: --out DIR")
    records: list[dict[str, Any]] = [{"part": part, "samples": n, "runs": []} for part, n in RUNS]
    for _ in range(options.turns):
        for row in records:
            row["runs"].append(in_process(row["part"], row["samples"]))
            print(row["part"], row["samples"], row["runs"][-1], flush=True)
    facts = {"threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    write_json(options.out / "core.json", {**facts, "classes": CLASSES, "records": records})
    write_text(options.out / "core.md", markdown(records))


if __name__ == "__main__":
    main()
