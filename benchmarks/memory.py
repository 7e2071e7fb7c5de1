"""Peak memory of `cgd scan` of a folder, for few and for many images.

python -m benchmarks.memory --out DIR
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cgd.files import write_json, write_text
from cgd.models import ModelCard, build, save_model

CLASSES = 10
SIDE = 8


def make_images(root: Path, n: int) -> None:
    """Write n noise images as PPM files in class folders."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    for c in range(CLASSES):
        (root / f"class-{c}").mkdir(parents=True)
    for row, image in enumerate(pixels):
        Image.fromarray(image).save(root / f"class-{row % CLASSES}" / f"image-{row:07}.ppm")


def scan_peak(folder: Path, n: int) -> dict[str, float]:
    """Scan n images with given scores and an untrained model as suspect; MiB and seconds."""
    data, model = folder / f"data-{n}", folder / "model"
    make_images(data, n)
    names = tuple(f"class-{c}" for c in range(CLASSES))
    save_model(model, build(ModelCard("tiny_resnet", names, SIDE)))
    scores = np.random.default_rng(1).normal(size=(n, CLASSES)).astype(np.float32)
    np.save(folder / "scores.npy", scores)
    command = [sys.executable, "-c", "from cgd.cli import main; main()", "scan", str(data)]
    command += ["--out", str(folder / f"scan-{n}"), "--guide", f"scores:{folder}/scores.npy"]
    command += ["--suspect", "checkpoint", "--model", str(model)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    anonymous = 0
    while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        anonymous = max(anonymous, _anonymous(process.pid))
        time.sleep(0.02)
    if found[1]:
        raise RuntimeError(f"the scan of {n} images failed")
    return {
        "images": n,
        "peak_mib": found[2].ru_maxrss / 1024,
        "anonymous_mib": anonymous / 1024,
        "cpu_s": found[2].ru_utime + found[2].ru_stime,
        "wall_s": time.perf_counter() - start,
    }


def _anonymous(pid: int) -> int:
    """Memory of a process that no file backs, in KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def markdown(records: list[dict[str, Any]]) -> str:
    """The records as a table, and what an image costs."""
    lines = [
        "| images | peak memory (ru_maxrss), MiB | not backed by a file, MiB | CPU, s |",
        "|---|---|---|---|",
    ]
    for row in records:
        lines.append(
            f"| {row['images']:,} | {row['peak_mib']:.0f} | {row['anonymous_mib']:.0f} "
            f"| {row['cpu_s']:.0f} |"
        )
    few, many = records[0], records[-1]
    more = many["images"] - few["images"]
    cost = 2**20 * (many["peak_mib"] - few["peak_mib"]) / max(1, more)
    return "\n".join(lines) + f"\n\n{cost:.0f} bytes an image of {SIDE} px.\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        records = [scan_peak(Path(folder), n) for n in options.images]
    facts = {"threads": torch.get_num_threads(), "classes": CLASSES, "side": SIDE}
    write_json(options.out / "memory.json", {**facts, "records": records})
    write_text(options.out / "memory.md", markdown(records))


if __name__ == "__main__":
    main()
