"""A guide by OpenVINO gives what it gives by torch."""

import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from cgd.guides import open_clip as open_clip_guide
from cgd.guides import open_guide
from cgd.guides import openvino as module
from cgd.guides.openvino import by_openvino

TINY_CLIP = "cgd-tiny-clip"


@pytest.fixture
def model(clip_weights: Path) -> torch.nn.Module:
    weights = str(clip_weights / "weights.safetensors")
    loaded: torch.nn.Module = open_clip.create_model(TINY_CLIP, pretrained=weights).eval()
    return loaded


@pytest.mark.parametrize(("halved", "tolerance"), [(False, 1e-4), (True, 2e-2)])
def test_same_as_torch(
    model: torch.nn.Module, halved: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "has_bfloat16", lambda device: halved)
    size = model.visual.image_size  # type: ignore[union-attr]
    compiled = by_openvino(model, size)
    assert compiled is not None
    for n in (1, 5, 3):
        images = torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            expected = model.encode_image(images)  # type: ignore[operator]
        vectors = compiled(images)
        assert vectors.dtype == torch.float32
        assert (vectors - expected).norm() < tolerance * expected.norm()


def test_a_guide_says_the_same_and_keeps_its_vectors_apart(
    clip_weights: Path, noise_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, data = f"open_clip:{TINY_CLIP}/{clip_weights / 'weights.pt'}", noise_data(n=6, size=32)
    compiled = open_guide(name, cache=tmp_path).logits(data)
    monkeypatch.setattr(open_clip_guide, "by_openvino", lambda model, size: None)
    logits = open_guide(name, cache=tmp_path).logits(data)
    assert (compiled - logits).abs().max() < 0.05 * logits.abs().max()
    assert len(list(tmp_path.iterdir())) == 2


def test_torch_where_it_is_not_installed(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert by_openvino(model, (32, 32)) is None


def test_torch_where_it_cannot_run_the_model(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("odd layer")

    monkeypatch.setattr(model, "encode_image", fails)
    assert by_openvino(model, (32, 32)) is None
    assert "torch does" in capsys.readouterr().err
