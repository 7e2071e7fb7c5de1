"""Make the guide of `cgd demo`: a digit classifier that has never seen handwriting.

It is trained on digits that are rendered from the fonts in matplotlib, bent and thickened as pens
do, and counted into 8x8 cells like scikit-learn's digits. How narrow and thick strokes get was set
by eye, beside a sheet of real digits, and the pen forms of one, seven and nine were added because
it got these classes wrong. It recognises 90 % of the real digits (95 % of those in held-out fonts),
and takes a quarter of the ones and of the eights for something else.

Run `python tools/make_demo_guide.py` to write `src/cgd/guides/demo/model.{json,safetensors}`;
`--hold-out` trains without the held-out fonts instead and prints the accuracy on them.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from cgd.demo import CLASSES, SIZE, to_images
from cgd.models import Classifier, ModelCard, build, save_model
from cgd.training import Recipe, predict, seeded, train

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
DEJAVU = ("Sans", "SansMono", "Sans-Oblique", "SansMono-Oblique", "Serif")
TRAINED = (
    *(f"DejaVu{face}" for face in (*DEJAVU, "Serif-Italic")),
    *("STIXGeneral", "STIXGeneralBol", "cmr10", "cmss10", "cmti10"),
)
HELD_OUT = ("DejaVuSerif-Bold", "STIXGeneralItalic", "STIXGeneralBolIta", "cmtt10", "cmb10")

GLYPH = 64
FORMS = 4
PEN_WIDTHS = {1: 0.3, 4: 0.5, 9: 0.45}
SAMPLES = 30_000
RECIPE = Recipe(epochs=8, batch=256, lr=0.1, crop=False, flip=False)
CARD = ModelCard("tiny_resnet", CLASSES, SIZE)
OUT = Path(__file__).parents[1] / "src" / "cgd" / "guides" / "demo"


def render(fonts: Sequence[str]) -> Tensor:
    """Draw the digits of each font as printed and as pens do: float [4 fonts, 10, 64, 64], ink 1.

    Digits are about 40 pixels high.
    """
    glyphs = [
        [_glyph(FONTS / f"{font}.ttf", digit, form) for digit in range(10)]
        for font in fonts
        for form in range(FORMS)
    ]
    return torch.from_numpy(np.array(glyphs, dtype=np.float32) / 255)


def _glyph(font: Path, digit: int, form: int) -> NDArray[np.uint8]:
    large = Image.new("L", (256, 256))
    face = ImageFont.truetype(font, 160)
    ImageDraw.Draw(large).text((64, 32), str(digit), fill=255, font=face)
    ink = large.crop(large.getbbox())
    if form:
        ink = _pen_form(ink, digit, form)
    scale = 40 / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))))
    square = Image.new("L", (GLYPH, GLYPH))
    square.paste(ink, ((GLYPH - ink.width) // 2, (GLYPH - ink.height) // 2))
    return np.asarray(square)


def _pen_form(ink: Image.Image, digit: int, form: int) -> Image.Image:
    """One with a flag and no foot, an open four, a crossed seven, a nine with a curled tail;
    others as they are.

    `form` 1, 2, 3 varies strokes, flags and tails.
    """
    height = ink.height
    stroke = round((0.05 + 0.07 * form) * height) if digit == 1 else height // 8
    drawn = Image.new("L", (round(PEN_WIDTHS.get(digit, 0) * height) + stroke, height))
    pen, right, foot = ImageDraw.Draw(drawn), drawn.width - stroke // 2, height - stroke // 2
    if digit == 1:
        flag = [(stroke // 3, round((0.4 if form == 3 else 0.55) * height)), (right, stroke // 3)]
        pen.line([*flag, (right, height)], fill=255, width=stroke)
    elif digit == 4:
        top, bar = 0.25 * (form - 1) * right, round((0.45 + 0.1 * form) * height)
        pen.line([(top, 0), (stroke // 2, bar), (right, bar)], fill=255, width=stroke)
        pen.line([(0.7 * right, 0.3 * height), (0.6 * right, height)], fill=255, width=stroke)
    elif digit == 9:
        pen.ellipse((0, 0, right, round((0.7 - 0.1 * form) * height)), outline=255, width=stroke)
        tail = [(right, 0.25 * height), (right, 0.75 * height), (0.75 * right, foot)]
        tail += [(0.2 * (form - 1) * right, foot), (0, 0.85 * height)][: 4 - form]
        pen.line(tail, fill=255, width=stroke, joint="curve")
    else:
        drawn = ink
        if digit == 7:
            bar = (0.1 * ink.width, 0.46 * height, 0.9 * ink.width, 0.56 * height)
            ImageDraw.Draw(ink).rectangle(bar, fill=255)
    return drawn


def handwrite(glyphs: Tensor, generator: Generator) -> Tensor:
    """Bend, thicken and count glyphs [n, 64, 64] into ink counts [n, 8, 8], 0..16."""
    n = len(glyphs)
    bent = _sample(glyphs, _affine(n, generator) + _elastic(n, generator))
    inked = _pen(bent, generator)
    return _fit(inked, generator).round().sum((2, 4))


def _uniform(n: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def _affine(n: int, generator: Generator) -> Tensor:
    """Rotation, slant and width at random, as a sampling grid [n, 64, 64, 2]."""
    angle = _uniform(n, -0.2, 0.2, generator)
    slant = _uniform(n, -0.4, 0.4, generator)
    width = _uniform(n, -0.65, 0.1, generator).exp()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(n)
    rows = [torch.stack([cos / width, slant - sin, zero], 1), torch.stack([sin, cos, zero], 1)]
    return F.affine_grid(torch.stack(rows, 1), [n, 1, GLYPH, GLYPH], align_corners=False)


def _elastic(n: int, generator: Generator) -> Tensor:
    """A smooth random displacement [n, 64, 64, 2], coarse and fine."""
    field = torch.zeros(n, 2, GLYPH, GLYPH)
    for cells, strength in ((3, 0.12), (5, 0.06)):
        coarse = strength * torch.randn(n, 2, cells, cells, generator=generator)
        field += F.interpolate(coarse, size=GLYPH, mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def _pen(images: Tensor, generator: Generator) -> Tensor:
    """Thicken the strokes [n, 64, 64] at random by up to two pixels."""
    kind = torch.randint(0, 3, (len(images),), generator=generator)
    inked = images[:, None].clone()
    for grown, side in ((1, 3), (2, 5)):
        rows = kind == grown
        inked[rows] = F.max_pool2d(inked[rows], side, 1, side // 2)
    return inked[:, 0]


def _fit(images: Tensor, generator: Generator) -> Tensor:
    """Scale each image to the height of a 32x32 bitmap, centred: [n, 8, 4, 8, 4] cells."""
    n = len(images)
    line = (torch.arange(GLYPH) + 0.5) * (2 / GLYPH) - 1
    inked = images > 0.5
    (left, right), (top, bottom) = _span(inked.any(1), line), _span(inked.any(2), line)
    half = (bottom - top) / 2
    width = torch.maximum(half, (right - left) / 2) * _uniform(n, 0.95, 1.15, generator)
    zero = torch.zeros(n)
    drift = _uniform(n, -0.1, 0.1, generator)
    rows = [
        torch.stack([width, zero, (left + right) / 2 + drift * width], 1),
        torch.stack([zero, half, (top + bottom) / 2], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, 32, 32], align_corners=False)
    return _sample(images, grid).view(n, 8, 4, 8, 4)


def _span(inked: Tensor, line: Tensor) -> tuple[Tensor, Tensor]:
    """First and last inked coordinate of each row of a mask [n, 64]."""
    low = torch.where(inked, line, math.inf).amin(1)
    high = torch.where(inked, line, -math.inf).amax(1)
    empty = ~inked.any(1)
    return low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)


def make_set(fonts: Sequence[str], samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `samples` digits: uint8 images [n, 3, 16, 16] and int64 labels [n]."""
    generator = seeded(seed)
    glyphs = render(fonts)
    labels = torch.arange(samples) % 10
    chosen = torch.randint(0, len(glyphs), (samples,), generator=generator)
    inks = [
        handwrite(glyphs[font, digit], generator)
        for font, digit in zip(chosen.split(2000), labels.split(2000), strict=True)
    ]
    return to_images(torch.cat(inks)), labels


def fit(fonts: Sequence[str]) -> Classifier:
    """Train the guide on digits in these fonts."""
    images, labels = make_set(fonts, SAMPLES, seed=1)
    device = torch.device("cpu")
    return train(build(CARD, seed=0), images, labels, RECIPE, device=device, label="guide")


def main() -> None:
    """Write the guide, or try the settings on the held-out fonts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hold-out", action="store_true", help="print the held-out accuracy")
    if parser.parse_args().hold_out:
        images, labels = make_set(HELD_OUT, 5000, seed=2)
        hits = predict(fit(TRAINED), images).argmax(1) == labels
        print(f"accuracy on held-out fonts: {hits.float().mean():.1%}")
        return
    save_model(OUT, fit((*TRAINED, *HELD_OUT)))
    print(OUT)


if __name__ == "__main__":
    main()
