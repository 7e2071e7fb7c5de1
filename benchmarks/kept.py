"""What does it bring that memory is kept from step to step? The same work with and without.

python -m benchmarks.kept --data cifar10/train.parquet --out DIR
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.__main__ import head, table
from benchmarks.clock import Times, Work, in_turns, ratios, spread
from benchmarks.guide import encode_anew, random_clip
from benchmarks.loop import BATCH, RECIPE, STEPS, fresh
from cgd.data import ImageData, load
from cgd.files import write_json, write_text
from cgd.guides import open_guide
from cgd.guides.encoding import Encoder
from cgd.guides.open_clip import OpenClipGuide
from cgd.training import predict, train

CPU = torch.device("cpu")
ASKED = 64
"""Images that the guide is asked about a repetition."""
USERS = ("cgd.training", "cgd.guides.encoding")


def compare(works: dict[str, Work], repetitions: int) -> dict[tuple[str, str], Times]:
    """Time every piece of work as it is, and with memory given back at once."""

    def given_back(run: Callable[[], object]) -> None:
        with (
            patch(f"{USERS[0]}.memory_kept", nullcontext),
            patch(f"{USERS[1]}.memory_kept", nullcontext),
        ):
            run()

    both = {}
    for name, work in works.items():
        both[name, "given back"] = Work(partial(given_back, work.run), work.images)
        both[name, "kept"] = work
    return in_turns(both, repetitions, CPU)


def works(data: ImageData, encoder: Encoder, counts: dict[str, int]) -> dict[str, Work]:
    """Train and predict with each network, and encode for the guide."""
    made = {}
    for arch, steps in counts.items():
        some = data.subset(np.arange(steps * BATCH) % len(data))
        model = fresh(arch, data, CPU)
        images, labels = some.images, some.labels
        learn = partial(train, model, images, labels, RECIPE, device=CPU)
        made[f"{arch}, training"] = Work(learn, len(some))
        made[f"{arch}, prediction"] = Work(partial(predict, model, images, device=CPU), len(some))
    asked = data.subset(np.arange(min(ASKED, len(data))))
    made["CLIP ViT-B/32"] = Work(partial(encode_anew, asked, encoder), len(asked))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, print the table, and write it with the raw numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kept", description=__doc__)
    parser.add_argument("--data", required=True, help="CIFAR-10: whatever `cgd scan` takes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--repetitions", type=int, default=5)
    asked = parser.parse_args(arguments)
    data = load(asked.data)
    with tempfile.TemporaryDirectory() as folder:
        guide = open_guide(random_clip(Path(folder)), device=CPU)
        assert isinstance(guide, OpenClipGuide)
        found = compare(works(data, guide.encoder, STEPS), asked.repetitions)
    rows, records = [], []
    for name in dict.fromkeys(work for work, _ in found):
        back, kept = found[name, "given back"], found[name, "kept"]
        gain = ratios(back.seconds, kept.seconds)
        rows.append([name, *(f"{1 / side.median:,.1f}" for side in (back, kept)), spread(gain)])
        records.append({"work": name, "given back": asdict(back), "kept": asdict(kept)})
    text = table(["work", "given back, images/s", "kept, images/s", "faster by"], rows)
    print(text)
    write_json(asked.out / "kept.json", {**head(CPU, asked.repetitions), "works": records})
    write_text(asked.out / "kept.md", text)


if __name__ == "__main__":
    main()
