"""The guide pass against the bare forward pass of the same model on inputs that are ready.

python -m benchmarks.guide --small CIFAR.parquet --photos FOLDER [--onnx FILE] --out DIR
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from benchmarks.clock import ratios, spread
from cgd.data import ImageData, load
from cgd.files import write_json, write_text
from cgd.guides import open_guide
from cgd.guides.cache import VectorCache
from cgd.guides.encoding import Encoder, encode
from cgd.memory import memory_kept
from cgd.training import pick_device

CLIP = "ViT-B-32"


@dataclass(frozen=True)
class Times:
    """Seconds an image, a number a repetition: by the wall, and of processor time in all threads.

    The first tells how far decoding is hidden behind the forward pass, where a core is free for
    it; the second does not depend on what else runs.
    """

    wall: list[float]
    cpu: list[float]


def guide_pass(data: ImageData, encoder: Encoder, repetitions: int) -> dict[str, Times]:
    """Time `bare`, the forward pass, and `cgd`, the whole pass: decode, prepare, encode, store."""
    positions = np.arange(len(data))
    ready = []
    for rows in np.array_split(positions, -(-len(data) // encoder.batch)):
        read = data.originals or (lambda at, side: list(data.images[at]))
        ready.append(
            encoder.preprocessing(read(rows.tolist(), encoder.preprocessing.side), encoder.device)
        )

    @torch.no_grad()
    def bare() -> None:
        with memory_kept():
            for images in ready:
                encoder.forward(images).cpu()

    whole = partial(encode_anew, data, encoder)
    works: dict[str, Callable[[], None]] = {"bare": bare, "cgd": whole}
    return in_turns(works, len(data), repetitions)


def encode_anew(data: ImageData, encoder: Encoder) -> None:
    """Encode images, none of which is in the cache."""
    with tempfile.TemporaryDirectory() as folder:
        encode(data, encoder, VectorCache(Path(folder), {}))


def in_turns(
    works: Mapping[str, Callable[[], None]], images: int, repetitions: int
) -> dict[str, Times]:
    """Time every piece of work, in turns, after one turn that is not timed."""
    times = {name: Times([], []) for name in works}
    for turn in range(repetitions + 1):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if turn:
                times[name].wall.append((time.perf_counter() - wall) / images)
                times[name].cpu.append((time.process_time() - cpu) / images)
    return times


def random_clip(folder: Path) -> str:
    """Write a CLIP with random weights; return it as a guide: speed does not depend on weights."""
    torch.manual_seed(0)
    path = folder / "clip.safetensors"
    save_file(open_clip.create_model(CLIP).state_dict(), path)
    return f"open_clip:{CLIP}/{path}"


def sample(data: ImageData, count: int) -> ImageData:
    """Some images, in order, from all over the data."""
    return data.subset(np.linspace(0, len(data) - 1, count).astype(np.int64))


def record(times: dict[str, Times], **facts: Any) -> dict[str, Any]:
    """What is kept of a comparison: rates in images a second, ratios turn by turn."""
    bare, ours = times["bare"], times["cgd"]
    return {
        **facts,
        "bare_per_s": 1 / float(np.median(bare.wall)),
        "cgd_per_s": 1 / float(np.median(ours.wall)),
        "ratio": ratios(bare.wall, ours.wall),
        "ratio_cpu": ratios(bare.cpu, ours.cpu),
        "bare_cpu_ms": 1e3 * float(np.median(bare.cpu)),
        "cgd_cpu_ms": 1e3 * float(np.median(ours.cpu)),
    }


def markdown(records: list[dict[str, Any]]) -> str:
    """The records as a table."""
    lines = [
        "| guide | images | bare, images/s | cgd, images/s | ratio, wall | bare, CPU ms/image "
        "| cgd, CPU ms/image | ratio, CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in records:
        lines.append(
            f"| {row['guide']} | {row['input']} | {row['bare_per_s']:.1f} | {row['cgd_per_s']:.1f} "
            f"| {spread(row['ratio'])} | {row['bare_cpu_ms']:.1f} | {row['cgd_cpu_ms']:.1f} "
            f"| {spread(row['ratio_cpu'])} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", required=True, help="DATA of 32 px")
    parser.add_argument("--photos", required=True, help="DATA of large JPEG files")
    parser.add_argument("--onnx", help="ONNX classifier")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=128, help="images a turn (ONNX: four times)")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    device = pick_device()
    inputs = {"32 px": load(options.small), "JPEG photos": load(options.photos)}
    records = []
    with tempfile.TemporaryDirectory() as folder:
        guides = {CLIP: (random_clip(Path(folder)), options.count)}
        if options.onnx:
            guides[Path(options.onnx).stem] = (f"onnx:{options.onnx}", 4 * options.count)
        for name, (spec, count) in guides.items():
            encoder = open_guide(spec, device=device).encoder  # type: ignore[attr-defined]
            for kind, data in inputs.items():
                some = sample(data, min(count, len(data)))
                times = guide_pass(some, encoder, options.turns)
                facts = {"guide": name, "input": kind, "images": len(some), "batch": encoder.batch}
                records.append(record(times, **facts))
                print(markdown(records[-1:]), flush=True)
    setting = {"device": str(device), "threads": torch.get_num_threads()}
    write_json(options.out / "guide.json", {**setting, "records": records})
    write_text(options.out / "guide.md", markdown(records))


if __name__ == "__main__":
    main()
