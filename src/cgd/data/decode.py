"""Encoded image -> RGB pixels, for images that may be hostile.

Only common raster formats are opened (none that starts another program), sizes are checked on the
header before any pixel is decoded, and whatever goes wrong becomes `Unusable` with a reason.

Colour: palette, grey, CMYK and the like become RGB; alpha is dropped; 16-bit grey is scaled to 8
bit. Of an animation the first frame counts. EXIF orientation is ignored, as it is by the common
readers of training sets.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Condition

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from cgd.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
PIXELS_AT_ONCE = 2 * MAX_PIXELS
STRIP_PIXELS = 2**18
MAX_ASPECT = 16
REDUCING_GAP = 2.0


class Unusable(Exception):
    """This image cannot be used; the message says why in a few words."""


class _Room:
    """Room for some pixels, which threads that decode share; who finds it full waits."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._changed = Condition()

    @contextmanager
    def of(self, image: Image.Image) -> Iterator[None]:
        """Take the room that an image needs."""
        pixels = image.width * image.height
        with self._changed:
            self._changed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_room = _Room(PIXELS_AT_ONCE)


def header_size(encoded: bytes) -> tuple[int, int]:
    """Read (width, height) in pixels from the header of an encoded image.

    Raises:
        Unusable: not an image in a known format, or larger than the limits.
    """
    with _reasons():
        return _open(encoded).size


def decode_square(encoded: bytes, size: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode an image and squash it to a square, so that no corner (or trigger in it) is cut off.

    Args:
        encoded: file content.
        size: height and width of the result, in pixels.

    Returns:
        Pixels (uint8 [3, size, size]) and the stored (width, height).

    Raises:
        Unusable: the image is damaged, too large or of an unknown kind.
    """
    with _reasons():
        image = _open(encoded)
        stored = image.size
        with _room.of(image):
            return _pixels(image, (size, size)), stored


def decode_shrunk(encoded: bytes, side: int) -> NDArray[np.uint8]:
    """Decode an image and shrink it, aspect kept, until its short side is at most `side` pixels.

    Of a strip longer than 16:1, only the middle is kept: strips would fill the memory.

    Returns:
        uint8 [3, h, w]; the long side is rounded down, as torchvision's Resize does.

    Raises:
        Unusable: the image is damaged, too large or of an unknown kind.
    """
    with _reasons():
        image = _open(encoded)
        with _room.of(image):
            return _shrunk_to(_without_ends(image), side)


def decode_file(path: Path) -> Tensor:
    """Decode one image file that the user named, such as a trigger: uint8 [3, h, w].

    Raises:
        InputError: there is no such file, or it is no usable image.
    """
    try:
        with path.open("rb") as file, _reasons():
            image = _open(file.read(MAX_BYTES + 1))
            return torch.from_numpy(_pixels(image, image.size)).contiguous()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except Unusable as error:
        raise InputError(f"{path}: {error}; name an image file") from error


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about odd files; what matters in them is checked here.

    Warning filters belong to the process, not to a thread: enter this once around a whole pool of
    decoding threads, never inside one of them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@contextmanager
def _reasons() -> Iterator[None]:
    try:
        yield
    except Unusable:
        raise
    except UnidentifiedImageError as error:
        raise Unusable("not an image in a known format") from error
    except Image.DecompressionBombError as error:
        raise Unusable(f"more than {MAX_PIXELS} pixels") from error
    # Damaged files make Pillow raise nearly everything: OSError, struct.error, KeyError, ...
    except Exception as error:
        text = str(error).partition("\n")[0]
        raise Unusable(f"damaged image ({text or type(error).__name__})") from error


def _open(encoded: bytes) -> Image.Image:
    """Read the header only, and check it against the limits."""
    if not encoded:
        raise Unusable("empty")
    if len(encoded) > MAX_BYTES:
        raise Unusable(f"more than {MAX_BYTES} bytes")
    image = Image.open(BytesIO(encoded), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(f"more than {MAX_PIXELS} pixels")
    return image


def _shrunk_to(image: Image.Image, side: int) -> NDArray[np.uint8]:
    short, long = sorted(image.size)
    if short <= side:
        return _pixels(image, image.size)
    other = int(side * long / short)
    return _shrunk(image, (side, other) if image.width == short else (other, side))


def _without_ends(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def _shrunk(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """As `_pixels`, of a larger image; by torch, whose filter takes a fifth of the time."""
    _draft(image, size)
    rgb = _to_rgb(image)
    factor = int(min(rgb.width / size[0], rgb.height / size[1]) / REDUCING_GAP)
    if factor > 1:
        rgb = rgb.reduce(factor)
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]
    shrunk = F.interpolate(pixels, size[::-1], mode="bicubic", antialias=True)[0]
    found: NDArray[np.uint8] = shrunk.numpy()
    return found


def _draft(image: Image.Image, size: tuple[int, int]) -> None:
    """JPEG can decode at 1/2, 1/4 or 1/8 for less work; twice the size is left for the filter."""
    image.draft(None, (int(size[0] * REDUCING_GAP), int(size[1] * REDUCING_GAP)))


def _pixels(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode to RGB at (width, height): uint8 [3, height, width]."""
    if image.size != size:
        _draft(image, size)
    rgb = _to_rgb(image)
    if rgb.size != size:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    return np.array(rgb).transpose(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F":
        raise Unusable("floating-point pixels")
    if image.mode.startswith("I"):
        return _scaled(image).convert("RGB")
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Make 8-bit grey of 16-bit grey, which convert("RGB") would clip at 255; in strips, because
    the numbers take more memory than the image."""
    width, height = image.size
    grey = np.empty((height, width), dtype=np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        values = np.clip(np.asarray(strip), 0, 65535).astype(np.uint32)
        grey[top : top + rows] = (values + 128) // 257
    return Image.fromarray(grey)
