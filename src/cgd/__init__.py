"""Find and undo backdoor poisoning in image data you did not collect."""

from cgd.data import ImageData, from_arrays, load
from cgd.errors import InputError
from cgd.evaluation import Evaluation, evaluate
from cgd.models import Classifier, ModelCard, build, load_checkpoint, load_model, save_model
from cgd.pipeline import Scan, defend, scan
from cgd.split import Split

__all__ = [
    "Classifier",
    "Evaluation",
    "ImageData",
    "InputError",
    "ModelCard",
    "Scan",
    "Split",
    "build",
    "defend",
    "evaluate",
    "from_arrays",
    "load",
    "load_checkpoint",
    "load_model",
    "save_model",
    "scan",
]
