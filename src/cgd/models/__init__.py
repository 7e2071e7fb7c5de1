"""Image classifiers: what they are, how they are built, saved and loaded."""

from cgd.models.classifier import (
    Classifier,
    ModelCard,
    build,
    load_checkpoint,
    load_model,
    save_model,
)

__all__ = ["Classifier", "ModelCard", "build", "load_checkpoint", "load_model", "save_model"]
