"""One image: every kind of pixel, and everything that can be wrong with a file."""

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cgd.data import decode
from cgd.data.decode import (
    Unusable,
    decode_file,
    decode_shrunk,
    decode_square,
    header_size,
    quiet_pillow,
)
from cgd.errors import InputError

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    planes = [255 * x / width, 255 * y / height, 127 + 127 * np.sin(9 * x / width)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "WEBP", "GIF"])
def test_every_format_gives_the_pixels_that_pillow_gives(kind: str) -> None:
    content = encoded(noise(8, 8), kind)
    pixels, stored = decode_square(content, 8)
    expected = np.asarray(Image.open(BytesIO(content)).convert("RGB"))
    assert stored == header_size(content) == (8, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "PA"])
def test_pixel_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(GRADIENT).convert("RGB").convert(mode)
    content = encoded(image, "TIFF" if mode == "PA" else "PNG")
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_square(content, 8)[0], expected)


def test_alpha_is_dropped_and_not_blended() -> None:
    rgba = np.dstack([np.asarray(noise(8, 8)), np.zeros((8, 8), np.uint8)])
    pixels, _ = decode_square(encoded(Image.fromarray(rgba)), 8)
    np.testing.assert_array_equal(pixels, rgba[..., :3].transpose(2, 0, 1))


def test_palette_with_transparency_is_quiet() -> None:
    image = Image.fromarray(GRADIENT).convert("P")
    content = encoded(image, transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode_square(content, 8)[0][0], GRADIENT)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_to_8_bit(kind: str) -> None:
    content = encoded(Image.fromarray(GRADIENT.astype(np.uint16) * 257), kind)
    pixels, _ = decode_square(content, 8)
    np.testing.assert_array_equal(pixels, np.stack([GRADIENT] * 3))


def test_16_bit_grey_takes_little_more_memory_than_the_image() -> None:
    ramp = np.linspace(0, 65535, 1000 * 2000).astype(np.uint16).reshape(1000, 2000)
    content = encoded(Image.fromarray(ramp))
    tracemalloc.start()
    try:
        pixels, _ = decode_square(content, 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * ramp.size
    assert np.all(np.diff(pixels[0].mean(1)) > 0)


def test_16_bit_grey_in_strips_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(GRADIENT.astype(np.uint16) * 257))
    for pixels_a_strip in (1, 24):
        monkeypatch.setattr(decode, "STRIP_PIXELS", pixels_a_strip)
        np.testing.assert_array_equal(decode_square(content, 8)[0], np.stack([GRADIENT] * 3))


@pytest.mark.parametrize("read", [decode_square, decode_shrunk])
def test_threads_decode_only_so_many_pixels_at_once(
    read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, most = 0, 0
    pixels_of = decode._to_rgb

    def slow(image: Image.Image) -> Image.Image:
        nonlocal now, most
        now += 1
        most = max(most, now)
        time.sleep(0.01)
        made = pixels_of(image)
        now -= 1
        return made

    monkeypatch.setattr(decode, "_to_rgb", slow)
    monkeypatch.setattr(decode, "_room", decode._Room(150))
    contents = [encoded(noise(8, 8))] * 12 + [b"damaged"] + [encoded(noise(12, 12))] * 4
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(read, content, 4) for content in contents]
    assert sum(future.exception() is None for future in futures) == 16
    assert most == 2


def test_cmyk_jpeg() -> None:
    content = encoded(smooth(16, 16).convert("CMYK"), "JPEG", quality=95)
    pixels, _ = decode_square(content, 16)
    expected = np.asarray(smooth(16, 16)).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels - expected).mean() < 4


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.unique(decode_square(content, 8)[0]).tolist() == [10]


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, _ = decode_square(encoded(noise(8, 8), "PNG", exif=exif), 8)
    np.testing.assert_array_equal(pixels, np.asarray(noise(8, 8)).transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(100, 40), (40, 100), (5, 3), (16, 16), (17, 16)])
def test_squashing_is_bicubic_and_cuts_nothing_off(width: int, height: int) -> None:
    image = smooth(width, height)
    pixels, stored = decode_square(encoded(image), 16)
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert stored == (width, height)
    assert np.abs(pixels.astype(int) - expected).max() <= 6


def test_fast_jpeg_decoding_is_close_to_full_decoding() -> None:
    content = encoded(smooth(640, 480), "JPEG", quality=95)
    full = Image.open(BytesIO(content)).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(full).transpose(2, 0, 1).astype(int)
    assert np.abs(decode_square(content, 32)[0] - expected).mean() < 1


@settings(deadline=None, max_examples=40)
@given(width=st.integers(4, 60), height=st.integers(4, 60), side=st.integers(1, 40))
def test_shrinking_follows_torchvision(width: int, height: int, side: int) -> None:
    from torchvision.transforms.functional import resize

    pixels = decode_shrunk(encoded(smooth(width, height)), side)
    image = smooth(width, height)
    expected = resize(image, side) if min(width, height) > side else image
    assert pixels.shape == (3, expected.height, expected.width)


def bomb(width: int, height: int) -> bytes:
    """A PNG header that claims a huge image, and hardly any data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am text", "not an image in a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (b"\x89PNG\r\n\x1a\n", "not an image in a known format"),
        (encoded(noise(32, 32))[:500], "damaged image"),
        (encoded(noise(32, 32), "JPEG")[:500], "damaged image"),
        (bomb(8000, 8000), "more than 50000000 pixels"),
        (bomb(10_000, 10_000), "more than 50000000 pixels"),
        (bomb(60_000, 60_000), "more than 50000000 pixels"),
        (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating-point pixels"),
    ],
    ids=["empty", "text", "eps", "header", "png", "jpeg", "bomb", "warned", "refused", "float"],
)
def test_unusable_images_have_a_reason(content: bytes, reason: str) -> None:
    with quiet_pillow():
        for read in (decode_square, decode_shrunk):
            with pytest.raises(Unusable, match=reason):
                read(content, 8)


def test_too_many_bytes_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 50)
    with pytest.raises(Unusable, match="more than 50 bytes"):
        header_size(encoded(noise(8, 8)))


def test_one_file(tmp_path: Path) -> None:
    noise(7, 5).save(tmp_path / "trigger.png")
    image = decode_file(tmp_path / "trigger.png")
    assert torch.equal(image, torch.from_numpy(np.array(noise(7, 5))).permute(2, 0, 1))
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(InputError, match=r"text\.png: not an image in a known format"):
        decode_file(tmp_path / "text.png")
    with pytest.raises(InputError, match=r"nothing: cannot be read \(No such file"):
        decode_file(tmp_path / "nothing")


FILES = [
    encoded(noise(9, 7), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
]


@settings(deadline=None, max_examples=150)
@given(
    content=st.sampled_from(FILES),
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=5),
    length=st.integers(0, 2000),
)
def test_damage_gives_pixels_or_a_reason(
    content: bytes, edits: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(content[:length])
    for place, value in edits:
        if place < len(damaged):
            damaged[place] = value
    with quiet_pillow():
        try:
            pixels, _ = decode_square(bytes(damaged), 6)
        except Unusable:
            return
    assert pixels.shape == (3, 6, 6)


@pytest.mark.parametrize("size", [(9000, 20), (20, 9000)])
def test_of_a_long_strip_the_middle_is_kept(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    middle = tuple(side // 2 for side in size)
    image.putpixel(middle, (255, 255, 255))
    shape = decode_shrunk(encoded(image), 20).shape
    assert shape == (3, *(min(side, 320) for side in reversed(size)))
    assert decode_shrunk(encoded(image), 20).max() == 255
