"""Poisoned data on disk: the data, the ground truth, and the trigger."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from cgd.attacks.base import Attack, make_attack
from cgd.attacks.manifest import IMPORTED, Manifest, read_manifest
from cgd.data import write_folder, write_parquet
from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.files import read_tensors, write_json, write_tensors
from cgd.text import first_line

Format = Literal["parquet", "folder"]


def write_poisoned(
    folder: Path,
    data: ImageData,
    attack: Attack | None,
    manifest: Manifest,
    *,
    form: Format = "parquet",
) -> None:
    """Write the data, `trigger.safetensors` (if the trigger has state) and `poison.json`.

    Args:
        folder: the run folder.
        data: the poisoned data.
        attack: its trigger; None where it is not known.
        manifest: the ground truth, in rows of `data`.
        form: `data.parquet`; or class folders of PNG files in `data/`, with the names of the
            classes in `classes.json`. The rows in `poison.json` are those that `load` will count.
    """
    if form == "folder":
        write_json(folder / "classes.json", data.classes)
        manifest = manifest.in_order(write_folder(data, folder / "data"))
    else:
        write_parquet(data, folder / "data.parquet")
    if attack and attack.state:
        write_tensors(folder / "trigger.safetensors", attack.state)
    write_json(folder / "poison.json", asdict(manifest))


def read_poisoned(folder: Path) -> tuple[Attack, Manifest]:
    """Read the attack, with its trigger, and the ground truth. For evaluation only.

    Raises:
        InputError: a file is missing or malformed, or the attack is not registered, or the poison
            is imported, so that its trigger is not known.
    """
    manifest = read_manifest(folder)
    if manifest.attack == IMPORTED:
        raise InputError(f"{folder}: imported poison; its trigger is not known")
    state = folder / "trigger.safetensors"
    extra = {"state": read_tensors(state)} if state.is_file() else {}
    try:
        return make_attack(manifest.attack, **manifest.parameters, **extra), manifest
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{folder}: attack and parameters do not fit ({first_line(error)})"
        ) from error
