"""`ImageData` -> Parquet, in the layout that Hugging Face `datasets` reads as images."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from cgd.data.dataset import ImageData
from cgd.data.loading import THREADS
from cgd.files import atomic
from cgd.progress import track

GROUP_ROWS = 4096
GROUP_PIXEL_BYTES = 256 * 2**20


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


def _png(image: Tensor) -> bytes:
    """Encode one image: uint8 [3, h, w]."""
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()
