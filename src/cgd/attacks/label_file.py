"""Label files of attacks that change labels only: one label, or one score a class, a sample."""

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cgd.errors import InputError
from cgd.text import first_line


def read_label_file(path: Path, samples: int, classes: int) -> Tensor:
    """Read class numbers [n], or scores [n, classes] of which the largest counts.

    `.npy`: an array of either; `.json`: the same as a list; else text, a sample a line, scores
    separated by commas.

    Args:
        path: the file.
        samples: how many labels are needed.
        classes: how many classes there are.

    Returns:
        int64 [samples].

    Raises:
        InputError: no such file, no numbers, or they fit other data.
    """
    try:
        values = _numbers(path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, TypeError, EOFError, RecursionError) as error:
        raise InputError(f"{path}: holds no list of labels ({first_line(error)})") from error
    if values.ndim not in (1, 2):
        raise InputError(f"{path}: must be of shape [n] or [n, classes], not {list(values.shape)}")
    if len(values) != samples:
        raise InputError(f"{path}: holds {len(values)} labels, but the data has {samples} samples")
    if values.ndim == 2:
        if values.shape[1] != classes:
            raise InputError(
                f"{path}: has {values.shape[1]} scores a sample, but the data has {classes} classes"
            )
        if np.isnan(values).any():
            raise InputError(f"{path}: has scores that are no numbers")
        values = values.argmax(1)
    if not np.isin(values, np.arange(classes)).all():
        raise InputError(f"{path}: labels must be whole numbers from 0 to {classes - 1}")
    return torch.from_numpy(values.astype(np.int64))


def _numbers(path: Path) -> NDArray[np.float64]:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.float64)
    if path.suffix == ".json":
        return np.asarray(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)
    lines = path.read_text(encoding="utf-8").split()
    return np.asarray([[float(cell) for cell in line.split(",")] for line in lines]).squeeze(
        1 if lines and "," not in lines[0] else ()
    )
