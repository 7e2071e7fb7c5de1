"""Guides: trusted models that say how well each label fits its image."""

from cgd.guides import classifier, onnx, open_clip, scores  # noqa: F401
from cgd.guides.agreement import ClassAgreement, agreement
from cgd.guides.base import DEFAULT_GUIDE, KINDS, Guide, Kind, Request, open_guide, register
from cgd.guides.names import code_like, readable
from cgd.guides.prompts import TEMPLATES

__all__ = [
    "DEFAULT_GUIDE",
    "KINDS",
    "TEMPLATES",
    "ClassAgreement",
    "Guide",
    "Kind",
    "Request",
    "agreement",
    "code_like",
    "open_guide",
    "readable",
    "register",
]
