"""What a guide is, and the registry of the kinds of guide."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.guides.joint import JointGuide
from cgd.guides.prompts import check_templates
from cgd.training import pick_device

DEFAULT_GUIDE = "open_clip:ViT-B-32/laion2b_s34b_b79k"


class Guide(Protocol):
    """A trusted model that scores images against class names, without training on them.

    Attributes:
        name: the guide as the user wrote it.

    One whose attribute `image_by_image` is true scores each image by itself, so that it can be
    asked about a part of the data.
    """

    name: str

    def logits(self, data: ImageData) -> Tensor:
        """Score every image against every class.

        Returns:
            float32 [n, len(data.classes)] on the CPU, at the scale the guide was trained with:
            their softmax is its class probabilities (for CLIP, 100 x cosine). No guide looks at the
            labels of the data, but for the one of several that is chosen by them.

        Raises:
            InputError: the guide does not fit the classes of the data.
        """
        ...


@dataclass(frozen=True)
class Request:
    """What an opener gets.

    Attributes:
        name: the whole specification.
        rest: what follows the colon in it.
        device: where to compute.
        templates: prompts with one `{}` each, for guides that read text; None for their default.
        cache: folder for what is kept between runs; None for the default.
    """

    name: str
    rest: str
    device: torch.device
    templates: tuple[str, ...] | None
    cache: Path | None


@dataclass(frozen=True)
class Kind:
    """A kind of guide: how it is written, what opens it, and of which files it consists."""

    form: str
    open: "Opener"
    files: "Files"


KINDS: dict[str, Kind] = {}

Opener = Callable[[Request], Guide]
Files = Callable[[str], list[Path]]
"""What follows the colon -> the local files that the guide's answers depend on."""


def register(form: str, files: Files = lambda rest: []) -> Callable[[Opener], Opener]:
    """Decorator: make an opener known; the part of `form` before the colon names the kind."""

    def decorate(opener: Opener) -> Opener:
        KINDS[form.partition(":")[0]] = Kind(form, opener, files)
        return opener

    return decorate


def open_guide(
    spec: str,
    *,
    device: torch.device | None = None,
    templates: Sequence[str] | None = None,
    cache: Path | None = None,
) -> Guide:
    """Open the guide that the user named.

    Args:
        spec: `open_clip:MODEL/PRETRAINED`, `onnx:FILE[?map=CLASSMAP.json]`, `classifier:RUN_DIR`,
            `scores:FILE.npy|.parquet` or `demo`; or several of them, as in `demo + onnx:FILE`
            (see `cgd.guides.joint`).
        device: where to compute; default: a GPU if there is one.
        templates: prompts with one `{}` each for guides that read text, or one name of a set of
            them (see `cgd.guides.prompts`); default: what suits the classes.
        cache: folder for embeddings that later runs reuse; default: CGD_CACHE, or
            `~/.cache/cgd/embeddings`.

    Raises:
        InputError: unknown kind, missing or unusable file, or a model that cannot be had.
    """
    parts = spec_parts(spec)
    if len(parts) > 1:
        guides = [open_guide(p, device=device, templates=templates, cache=cache) for p in parts]
        return JointGuide(spec, guides)
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        forms = ", ".join(known.form for known in KINDS.values())
        raise InputError(f"guide {spec!r}: no such kind; use {forms}")
    checked = None if templates is None else check_templates(templates)
    return KINDS[kind].open(Request(spec, rest, device or pick_device(), checked, cache))


def guide_files(spec: str) -> list[Path]:
    """List the local files that a specification names, and those that these need.

    Raises:
        InputError: a model that consists of several files cannot be read.
    """
    split = [part.partition(":") for part in spec_parts(spec)]
    return [file for kind, _, rest in split if kind in KINDS for file in KINDS[kind].files(rest)]


def spec_parts(spec: str, *kinds: str) -> list[str]:
    """Return the guides that a specification names.

    Args:
        spec: guides with ` + ` between them.
        kinds: what a guide may begin with, besides the kinds that are registered.

    >>> spec_parts("classifier:a + b + demo")
    ['classifier:a + b', 'demo']
    """
    return re.split(rf" \+ (?=(?:{'|'.join([*KINDS, *kinds])})\b)", spec)


def check_classes(name: str, outputs: int, data: ImageData) -> None:
    """Refuse a guide with another number of outputs than the data has classes.

    Raises:
        InputError: the numbers differ.
    """
    if outputs != len(data.classes):
        raise InputError(
            f"guide {name}: {outputs} classes, but {data.source} has {len(data.classes)}; "
            "use a guide for the same classes, or of an ONNX file say which outputs make up each: "
            "onnx:FILE?map=MAP.json"
        )
