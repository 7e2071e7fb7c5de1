"""`ImageData` -> Parquet, in the layout that Hugging Face `datasets` reads as images, or class
folders."""

import json
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.data.folder import SPLIT_NAMES
from cgd.data.loading import THREADS
from cgd.files import atomic
from cgd.progress import track

GROUP_ROWS = 4096
GROUP_PIXEL_BYTES = 256 * 2**20
FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .-]{0,59}(?<![ .])")


def write_parquet(data: ImageData, path: Path) -> None:
    """Write images (as PNG, without loss), labels, class names and paths; atomically.

    Columns are `image` (struct of `bytes` and `path`) and `label` (int64). The same data gives the
    same bytes. Row groups hold 4096 images, or fewer of large images, to bound memory.
    """
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(data.classes), "_type": "ClassLabel"},
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    step = max(1, min(GROUP_ROWS, GROUP_PIXEL_BYTES // (3 * data.size**2)))
    with (
        atomic(path) as temporary,
        # PNG does not compress further.
        pq.ParquetWriter(
            temporary, schema, compression="none", use_dictionary=False, write_statistics=False
        ) as writer,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for start in track(range(0, len(data), step), "writing"):
            rows = range(start, min(start + step, len(data)))
            encoded = list(pool.map(_png, (data.images[row] for row in rows)))
            writer.write_table(_table(data, rows, encoded, schema), row_group_size=step)


def _table(data: ImageData, rows: range, encoded: Sequence[bytes], schema: Any) -> Any:
    images = [
        {"bytes": content, "path": data.paths[row]}
        for row, content in zip(rows, encoded, strict=True)
    ]
    labels = data.labels[rows.start : rows.stop].numpy()
    return pa.table([pa.array(images, schema.field("image").type), pa.array(labels)], schema=schema)


def write_folder(data: ImageData, folder: Path) -> NDArray[np.int64]:
    """Write images as `folder/<class>/<row>.png`; what was in `folder` is replaced once all is
    written.

    The folders have the names of the classes where these, as `list_folder` sorts them, give the
    classes back; otherwise each begins with the number of its class. A row is the number that the
    image has when the folder is read again: classes one after the other.

    Returns:
        int64 [n], the position in `data` of each row as it is read back.
    """
    order: NDArray[np.int64] = np.argsort(data.labels.numpy(), kind="stable")
    names, digits = folder_names(data.classes), len(str(len(data)))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in names:
        (partial / name).mkdir(parents=True)

    def write(row: int) -> None:
        at = int(order[row])
        path = partial / names[int(data.labels[at])] / f"{row:0{digits}}.png"
        path.write_bytes(_png(data.images[at]))

    with ThreadPoolExecutor(THREADS) as pool:
        for start in track(range(0, len(data), GROUP_ROWS), "writing"):
            list(pool.map(write, range(start, min(start + GROUP_ROWS, len(data)))))
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return order


def folder_names(classes: Sequence[str]) -> list[str]:
    """Folder names that are safe, unlike each other, and sorted like the classes.

    >>> folder_names(["cat", "dog"]), folder_names(["dog", "../cat"])
    (['cat', 'dog'], ['0-dog', '1-.._cat'])
    """
    safe = all(FOLDER_NAME.fullmatch(name) for name in classes)
    in_order = sorted(classes) == list(classes)
    lower = {name.lower() for name in classes}
    if safe and in_order and len(lower) == len(classes) and not lower <= SPLIT_NAMES:
        return list(classes)
    digits = len(str(len(classes) - 1))
    shown = [re.sub(r"[^A-Za-z0-9_ .-]", "_", name)[:59].rstrip(" .") for name in classes]
    return [f"{number:0{digits}}-{name}" for number, name in enumerate(shown)]


def _png(image: Tensor) -> bytes:
    """Encode one image: uint8 [3, h, w]."""
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()
