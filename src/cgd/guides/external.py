"""Files beside an ONNX model that hold its weights, as large models have them.

Their names are in the model itself, which is a protocol buffer; it is read without the package
`onnx`, and only as far as tensors are concerned.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cgd.errors import InputError

INSIDE = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Kind of message -> its fields that may hold tensors, and the kinds of these."""
EXTERNAL_DATA, DATA_LOCATION = 13, 14
VARINT_BITS = 64

Field = tuple[int, int | memoryview]


def external_files(path: Path) -> list[Path]:
    """List the files beside an ONNX model that hold weights of it.

    Raises:
        InputError: it is no ONNX model, or a file is not there or outside the model's folder.
    """
    try:
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        locations = sorted(_locations(memoryview(content)))
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not a usable ONNX model ({error})") from error
    for location in locations:
        name = PurePosixPath(location)
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{path}: its weights are in {location!r}, outside its folder")
        if not (path.parent / location).is_file():
            raise InputError(f"{path}: its weights are in {location!r}, which is not there")
    return [path.parent / location for location in locations]


def _locations(model: memoryview) -> set[str]:
    found = set()
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        if kind == "tensor":
            found |= _location(message)
            continue
        for number, value in _fields(message):
            if (within := INSIDE[kind].get(number)) and isinstance(value, memoryview):
                waiting.append((within, value))
    return found


def _location(tensor: memoryview) -> set[str]:
    """Return the name of the file that a tensor is in, if it is in one."""
    fields = list(_fields(tensor))
    if (DATA_LOCATION, 1) not in fields:
        return set()
    entries = [_texts(value) for number, value in fields if number == EXTERNAL_DATA]
    return {entry.get(2, "") for entry in entries if entry.get(1) == "location"}


def _texts(message: int | memoryview) -> dict[int, str]:
    if isinstance(message, int):
        raise ValueError("not a protocol buffer")
    fields = _fields(message)
    return {number: str(value, "utf-8") for number, value in fields if not isinstance(value, int)}


def _fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message: number and value."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value: int | memoryview
        wire = tag & 7
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 2, 5):
            size, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError("not a protocol buffer")
        if at > len(message):
            raise ValueError("it is cut short")
        yield tag >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, the lowest first; return where it ends, too."""
    number = 0
    for shift in range(0, VARINT_BITS + 6, 7):
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise ValueError("not a protocol buffer")
