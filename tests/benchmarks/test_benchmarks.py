"""The benchmarks run, and scale up what they measured as they say."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.clock import Times, Work, in_turns, ratios
from benchmarks.compiled import compare
from benchmarks.line import Part, Sizes, cgd_parts, plain_parts, totals
from benchmarks.loop import loop
from benchmarks.plain import PLAIN, Encoded, separated

from benchmarks import __main__ as command
from benchmarks import end_to_end, runtimes
from benchmarks import kept as kept_memory
from benchmarks import line as whole
from cgd import training
from cgd.data.writing import write_parquet
from cgd.entropy import entropy_map
from cgd.files import read_json
from cgd.guides.encoding import Encoder
from cgd.guides.preprocessing import Preprocessing
from cgd.split import released_split
from cgd.verdict import Verdict

CPU = torch.device("cpu")
Data = Any


def test_contenders_take_turns_and_the_first_turn_is_not_timed() -> None:
    turns: list[str] = []
    works = {"a": Work(lambda: turns.append("a"), 10), "b": Work(lambda: turns.append("b"))}
    times = in_turns(works, 2, CPU)
    assert turns == ["a", "b"] * 3
    assert [len(t.seconds) for t in times.values()] == [2, 2]
    assert (times["a"].images, times["b"].images) == (10, 1)


def test_ratios_are_of_the_same_turn() -> None:
    assert ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]


def test_encoded_images_are_the_images(toy_data: Data) -> None:
    data = toy_data(5)
    image, label, row = Encoded(data, PLAIN)[3]
    expected = (data.images[3].float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(image, expected)
    assert (label, row) == (int(data.labels[3]), 3)


def test_the_plain_split_is_that_of_the_released_preset(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    guide, suspect = torch.randn(2, 300, 5, generator=generator)
    labels = torch.randint(5, (300,), generator=generator)
    clean = separated(guide, suspect, labels, tmp_path)
    ranks = entropy_map(guide, suspect, labels)
    kept = (ranks.guide_rank <= 0.8) & (ranks.suspect_rank >= 0.2)
    verdict = Verdict("none", (), (), np.zeros(300), np.zeros(300))
    assert set(released_split(ranks, verdict).clean) <= set(clean)
    assert clean.tolist() == kept.nonzero()[0].tolist()


def test_the_loop_times_all_three(toy_data: Data) -> None:
    times = loop(toy_data(256), "tiny_resnet", 1, 1, CPU)
    assert list(times) == ["limit", "cgd", "torchvision"]
    assert all(t.median > 0 and t.images == 128 for t in times.values())


def test_work_is_timed_with_memory_kept_and_given_back(toy_data: Data) -> None:
    kept: list[bool] = []

    def trained() -> None:
        kept.append(training.memory_kept is not nullcontext)

    times = kept_memory.compare({"a": Work(trained, 7)}, 2)
    assert kept == [False, True] * 3
    assert list(times) == [("a", "given back"), ("a", "kept")]
    plain = Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    encoder = Encoder("tiny", lambda images: images.mean((2, 3)), plain, CPU, batch=4)
    works = kept_memory.works(toy_data(6), encoder, {"tiny_resnet": 1})
    assert [work.images for work in works.values()] == [128, 128, 6]
    for work in works.values():
        work.run()


def test_compiled_steps_are_timed_beside_plain_ones(toy_data: Data) -> None:
    found = compare(toy_data(256), "tiny_resnet", 2, 1, CPU, backend="eager")
    assert list(found.times) == ["plain", "compiled"]
    assert all(t.median > 0 and t.images == 256 for t in found.times.values())
    assert found.start > 0
    assert len(found.gain) == 1


@pytest.mark.usefixtures("small")
def test_openvino_is_timed_beside_torch(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--model", "cgd-tiny-clip-224", "--repetitions", "1"]
    runtimes.main(arguments)
    record = read_json(tmp_path / "openvino.json")
    assert list(record["times"]) == ["torch", "openvino"]
    assert all(times["seconds"][0] > 0 for times in record["times"].values())


def test_the_parts_of_the_plain_line_are_those_of_the_method() -> None:
    parts = {(p.stage, p.what): p.images for p in plain_parts(Sizes())}
    assert parts["suspect", "training"] == 3 * 5 * 50_000
    assert parts["unlearning", "training"] == 10 * 200 * 256
    assert parts["guide", "CLIP"] == 50_000


def test_with_5_percent_poison_half_of_the_images_is_asked_about() -> None:
    target = (50_000 - 2500) / 10 + 2500
    assert pytest.approx(20_000 + 0.6 * target, abs=1) == whole.ASKED


def test_the_whole_is_the_sum_of_the_scaled_parts() -> None:
    def made(contender: str, stage: str, images: float, wall: list[float]) -> tuple[Part, Times]:
        return Part(stage, contender, "x", images, 1), Times(wall, 1)

    parts = [made("cgd", stage, 10.0 * (i + 1), [1.0, 2.0]) for i, stage in enumerate(whole.STAGES)]
    assert totals(parts, "cgd") == [100.0, 200.0]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tiny networks in place of CLIP, suspect and victim."""
    name = "cgd-tiny-clip-224"
    vision = {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 112}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    monkeypatch.setattr(whole, "CLIP", name)
    for module in (whole, end_to_end):
        for name in ("SUSPECT", "VICTIM"):
            monkeypatch.setattr(module, name, "tiny_resnet")


SMALL = Sizes(batch=16, guide=4, suspect=128, all=480)


@pytest.mark.usefixtures("small")
def test_the_command_writes_records_and_tables(
    toy_data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "load", lambda name: toy_data(480))
    monkeypatch.setattr(command, "STEPS", {"tiny_resnet": 1})
    monkeypatch.setattr(command, "line", lambda *rest: whole.line(*rest, SMALL))
    out = tmp_path / "out"
    arguments = ["--data", "x", "--out", str(out), "--repetitions", "1", "--device", "cpu"]
    command.main([*arguments, "--check", "480"])
    printed = capsys.readouterr().out
    assert all(row in printed for row in (out / "tables.md").read_text().splitlines()[-5:])
    record = read_json(out / "speed.json")
    assert list(record["loop"]["tiny_resnet"]) == ["limit", "cgd", "torchvision"]
    parts = {(part["contender"], part["what"]) for part in record["line"]}
    assert parts == {(p.contender, p.what) for p in [*plain_parts(SMALL), *cgd_parts(SMALL)]}
    assert all(part["times"]["seconds"][0] > 0 for part in record["line"])
    assert all(min(found.values()) > 0 for found in record["check"]["stages"].values())
    rows = pq.read_table(out / "cells.parquet").to_pylist()
    assert [row["defense"] for row in rows] == ["cgd", "cgd ask_first=0", "cgd:released-plain"]
    assert [row["passes"] for row in rows] == pytest.approx([8.02, 8.02, 25.24], abs=0.01)
    clip = next(p for p in record["line"] if (p["contender"], p["what"]) == ("cgd", "CLIP"))
    saved = (50_000 - whole.ASKED) * clip["times"]["seconds"][0]
    assert rows[1]["seconds"] - rows[0]["seconds"] == pytest.approx(saved)
    assert all(row["seconds"] > row["seconds_guide"] > 0 for row in rows)


@pytest.mark.usefixtures("small")
def test_the_line_from_files_to_a_model_is_timed(
    toy_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_to_end, "SIZES", SMALL)
    monkeypatch.setattr(end_to_end, "product_limit", lambda device: 1e9)
    write_parquet(toy_data(400, size=32), tmp_path / "train.parquet")
    write_parquet(toy_data(200, seed=1, size=32), tmp_path / "test.parquet")
    files = ["--train", str(tmp_path / "train.parquet"), "--test", str(tmp_path / "test.parquet")]
    out = ["--out", str(tmp_path / "out"), "--repetitions", "1", "--device", "cpu"]
    end_to_end.main([*files, *out, "--epochs", "4"])
    record = read_json(tmp_path / "out" / "end_to_end.json")
    (turn,) = record["turns"]
    assert set(turn["seconds"]) == {
        "decoding", "guide", "suspect", "split", "unlearning", "saving",
    }  # fmt: skip
    assert min(turn["seconds"].values()) > 0
    assert turn["images"]["guide"] == 400
    assert record["before"]["asr"] is not None
    assert record["operations"]["guide"] > 0
    text = (tmp_path / "out" / "end_to_end.md").read_text()
    assert "whole line" in text
    assert "of the limit" in text
