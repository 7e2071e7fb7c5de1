"""Does OpenVINO pay? CLIP's vision tower on a CPU, by torch and by OpenVINO.

python -m benchmarks.runtimes --out DIR
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import open_clip
import torch

from benchmarks.__main__ import head, table
from benchmarks.clock import Work, in_turns, ratios, spread
from benchmarks.guide import CLIP
from cgd.files import write_json, write_text
from cgd.guides.open_clip import _convert
from cgd.guides.openvino import by_openvino
from cgd.training import has_bfloat16

CPU = torch.device("cpu")
BATCH = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Time, print the table, and write it with the raw numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records")
    parser.add_argument("--model", default=CLIP, help="of open_clip; its weights are random")
    parser.add_argument("--repetitions", type=int, default=7)
    asked = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = open_clip.create_model(asked.model).eval()
    size = open_clip.get_model_preprocess_cfg(model)["size"]
    images = torch.randn(BATCH, 3, *((size, size) if isinstance(size, int) else size))
    start = time.process_time()
    compiled = by_openvino(model, (images.shape[2], images.shape[3]))
    if compiled is None:
        raise SystemExit("OpenVINO is not installed, or cannot run this model")
    compiled(images)
    started = time.process_time() - start
    dtype = torch.bfloat16 if has_bfloat16(CPU) else torch.float32
    _convert(model.visual, dtype)

    @torch.no_grad()
    def by_torch() -> None:
        model.encode_image(images.to(dtype))

    works = {"torch": Work(by_torch, BATCH), "openvino": Work(lambda: compiled(images), BATCH)}
    times = in_turns(works, asked.repetitions, CPU)
    gain = ratios(times["torch"].seconds, times["openvino"].seconds)
    cells = [f"{1e3 * one.median:.1f}" for one in times.values()]
    columns = ["model", "torch, ms/image", "OpenVINO, ms/image", "faster by", "start, s"]
    shown = table(columns, [[asked.model, *cells, spread(gain), f"{started:.1f}"]])
    print(shown)
    write_text(asked.out / "openvino.md", shown)
    record = head(CPU, asked.repetitions)
    record |= {"model": asked.model, "dtype": str(dtype), "start": started}
    record["times"] = {name: asdict(one) for name, one in times.items()}
    write_json(asked.out / "openvino.json", record)


if __name__ == "__main__":
    main()
