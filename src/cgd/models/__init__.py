"""Image classifiers: what they are, how they are built, saved and loaded."""

from cgd.models.classifier import (
    Classifier,
    ModelCard,
    build,
    load_checkpoint,
    load_model,
    save_model,
)
from cgd.models.nets import Stamped

__all__ = [
    "Classifier",
    "ModelCard",
    "Stamped",
    "build",
    "load_checkpoint",
    "load_model",
    "save_model",
]
