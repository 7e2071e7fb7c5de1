"""The vision tower of a guide on a CPU by OpenVINO, where that is installed: it takes less time."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cgd.progress import say
from cgd.text import first_line
from cgd.training import has_bfloat16


class _Images(nn.Module):
    """What a CLIP model makes of images."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(images)
        return features


def by_openvino(model: Any, size: tuple[int, int]) -> Callable[[Tensor], Tensor] | None:
    """Compile `model.encode_image` for the CPU, in bfloat16 where the hardware has it.

    Args:
        model: a model of open_clip, with weights in float32.
        size: height and width of its images.

    Returns:
        float32 [n, 3, *size] -> float32 [n, width]; None where OpenVINO is not installed, or cannot
        run the model.
    """
    try:
        import openvino
        from openvino.frontend import FrontEndManager
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    except ImportError:
        return None
    precision = "bf16" if has_bfloat16(torch.device("cpu")) else "f32"
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    # A model that it does not know makes it, or the tracing, raise nearly everything.
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Not `openvino.convert_model`, which reports its use over the network.
            traced = TorchScriptPythonDecoder(
                _Images(model), example_input=torch.zeros(2, 3, *size)
            )
            reader = FrontEndManager().load_by_framework("pytorch")
            graph = reader.convert(reader.load(traced))
        compiled = openvino.Core().compile_model(graph, "CPU", settings)
    except Exception as error:
        say(f"OpenVINO cannot run this model ({first_line(error)}); torch does")
        return None
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])
