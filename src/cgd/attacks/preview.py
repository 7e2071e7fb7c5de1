"""A picture of what an attack does: images before, after, and the difference."""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLUMNS = 8
TILE = 128
"""Images are enlarged by a whole factor, to at most this many pixels."""

GAP = 6
TEXT = 15
GAIN = 10


def preview(before: Tensor, after: Tensor, *, changed: str = "poisoned") -> Image.Image:
    """Draw image pairs in columns: the original, the changed image, and the difference x 10.

    Args:
        before: uint8 [n, 3, size, size]; the first eight are drawn.
        after: the same shape.
        changed: caption of the second row.

    Returns:
        An RGB picture, a column an image.
    """
    before, after = before[:COLUMNS].cpu(), after[:COLUMNS].cpu()
    difference = (before.int() - after.int()).abs() * GAIN
    rows = {
        "original": before,
        changed: after,
        f"difference x {GAIN}": difference.clamp(max=255).to(torch.uint8),
    }
    tiles = [[_tile(image) for image in images] for images in rows.values()]
    side = tiles[0][0].width
    step = TEXT + GAP + side + GAP
    font = ImageFont.load_default(TEXT)
    width = GAP + max(len(tiles[0]) * (side + GAP), *(_width(font, row) + GAP for row in rows))
    canvas = Image.new("RGB", (width, len(rows) * step + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for y, (caption, images) in enumerate(zip(rows, tiles, strict=True)):
        draw.text((GAP, y * step + GAP // 2), caption, fill="black", font=font)
        for x, tile in enumerate(images):
            canvas.paste(tile, (GAP + x * (side + GAP), y * step + TEXT + GAP))
    return canvas


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(np.ceil(font.getlength(text)))


def _tile(image: Tensor) -> Image.Image:
    """One uint8 image [3, size, size] at about `TILE` pixels, without blurring it."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if picture.width > TILE:
        return picture.resize((TILE, TILE), Image.Resampling.BOX)
    side = TILE // picture.width * picture.width
    return picture.resize((side, side), Image.Resampling.NEAREST)
