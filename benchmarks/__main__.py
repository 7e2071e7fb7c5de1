"""`python -m benchmarks --data cifar10/train.parquet --out OUT`: see docs/benches.md."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import Times, ratios, spread
from benchmarks.line import (
    CIFAR,
    STAGES,
    VICTIM,
    Part,
    asking_all,
    check,
    line,
    seconds,
    totals,
)
from benchmarks.loop import STEPS, STEPS_ON_GPU, loop
from cgd.bench.cells import device_name
from cgd.bench.tables import write_cells
from cgd.data import load
from cgd.files import write_json, write_text
from cgd.training import pick_device

SAMPLE = 5000
"""Images that the samples are drawn from."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, print the tables, and write them with the raw numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10: whatever `cgd scan` takes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--check", type=int, default=500, help="images of the end-to-end check")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args(arguments)
    device, data = pick_device(asked.device), load(asked.data)
    sample = data.subset(np.random.default_rng(0).permutation(len(data))[:SAMPLE])
    record = head(device, asked.repetitions)
    counts = STEPS_ON_GPU if device.type == "cuda" else STEPS
    loops = {
        arch: loop(sample, arch, count, asked.repetitions, device) for arch, count in counts.items()
    }
    record["loop"] = {
        arch: {name: asdict(times) for name, times in found.items()}
        for arch, found in loops.items()
    }
    tables = [loop_table(loops)]
    keep(asked.out, record, tables)
    if device.type == "cuda":
        return  # a GPU does the whole line in seconds: see benchmarks.end_to_end
    parts = line(sample, asked.repetitions, device)
    record["line"] = [{**asdict(part), "times": asdict(times)} for part, times in parts]
    tables += [parts_table(parts), line_table(parts)]
    write_cells(asked.out / "cells.parquet", cells(parts, record))
    keep(asked.out, record, tables)
    if asked.check:
        few = sample.subset(np.arange(asked.check))
        record["check"] = {"images": asked.check, "stages": check(few, parts, device)}
        tables.append(check_table(record["check"]["stages"]))
        keep(asked.out, record, tables)


def head(device: torch.device, repetitions: int) -> dict[str, Any]:
    """What every record begins with."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "device": device_name(device),
        "version": version("cgd"),
        "torch": str(torch.__version__),
        "repetitions": repetitions,
    }


def keep(out: Path, record: dict[str, Any], tables: list[str]) -> None:
    """Print the newest table; write what there is so far."""
    print(tables[-1], flush=True)
    write_json(out / "speed.json", record)
    write_text(out / "tables.md", "\n".join(tables))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]]) + "\n"


def loop_table(loops: dict[str, dict[str, Times]]) -> str:
    """Rates, and our rate as a multiple of each: median, least and greatest of the repetitions."""
    rows = [
        [
            arch,
            name,
            f"{1 / times.median:,.0f}",
            spread(ratios(times.seconds, found["cgd"].seconds)),
        ]
        for arch, found in loops.items()
        for name, times in found.items()
    ]
    return table(["network", "loop", "images/s", "cgd is faster by"], rows)


def parts_table(parts: list[tuple[Part, Times]]) -> str:
    """What was measured of each part, and the part as a whole."""
    rows = []
    for part, times in parts:
        measured = f"{part.sample * times.median:.2f} s"
        sample = f"{part.sample} images" if part.images > 1 else "all"
        whole = f"{part.images * times.median:,.0f}"
        images = f"{part.images:,.0f}" if part.images > 1 else ""
        rows.append([part.stage, part.contender, part.what, sample, measured, images, whole])
    head = ["stage", "contender", "part", "sample", "measured", "images in all", "seconds in all"]
    return table(head, rows)


def line_table(parts: list[tuple[Part, Times]]) -> str:
    """Seconds of each stage, scaled up to all of CIFAR-10."""
    pairs = {stage: [seconds(parts, who, stage) for who in ("plain", "cgd")] for stage in STAGES}
    every = asking_all(parts)
    pairs["whole line"] = [totals(parts, who) for who in ("plain", "cgd")]
    pairs["guide, --ask-first 0"] = [seconds(every, who, "guide") for who in ("plain", "cgd")]
    pairs["whole line, --ask-first 0"] = [totals(every, who) for who in ("plain", "cgd")]
    rows = [
        [stage, *(f"{np.median(side):,.0f}" for side in pair), spread(ratios(*pair))]
        for stage, pair in pairs.items()
    ]
    return table(["stage", "plain, s", "cgd, s", "cgd is faster by"], rows)


def check_table(checked: dict[str, dict[str, float]]) -> str:
    """Prediction and truth on few images."""
    rows = [
        [stage, f"{found['predicted']:.0f}", f"{found['measured']:.0f}"]
        for stage, found in checked.items()
    ]
    return table(["stage", "predicted, s", "measured, s"], rows)


def cells(parts: list[tuple[Part, Times]], about: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole line as stored cells: our default, that with `--ask-first 0`, and the
    plain procedure."""
    passes = {"cgd": 0.0, "plain": 0.0}
    for part, _ in parts:
        if part.what == "training":
            passes[part.contender] += part.images / CIFAR
    rows = []
    for contender, name, timed in (
        ("cgd", "cgd", parts),
        ("cgd", "cgd ask_first=0", asking_all(parts)),
        ("plain", "cgd:released-plain", parts),
    ):
        by_stage = {
            f"seconds_{stage}": float(np.median(seconds(timed, contender, stage)))
            for stage in ("guide", "suspect", "unlearning")
        }
        rows.append(
            {
                "protocol": "full",
                "dataset": "cifar10",
                "model": VICTIM,
                "attack": "none",
                "rate": 0.0,
                "defense": name,
                "guide": "open_clip:ViT-B-32 (random weights)",
                "seed": 0,
                "seconds": float(np.median(totals(timed, contender))),
                **by_stage,
                "passes": passes[contender],
                "device": about["device"],
                "version": about["version"],
            }
        )
    return rows


if __name__ == "__main__":
    main()
