"""Poisoned data on disk: the data, the ground truth, and the trigger."""

from dataclasses import asdict
from pathlib import Path

from cgd.attacks.base import Attack, make_attack
from cgd.attacks.manifest import Manifest, read_manifest
from cgd.data import write_parquet
from cgd.data.dataset import ImageData
from cgd.errors import InputError
from cgd.files import read_tensors, write_json, write_tensors


def write_poisoned(folder: Path, data: ImageData, attack: Attack, manifest: Manifest) -> None:
    """Write `data.parquet`, `trigger.safetensors` (if the trigger has state) and `poison.json`."""
    write_parquet(data, folder / "data.parquet")
    if attack.state:
        write_tensors(folder / "trigger.safetensors", attack.state)
    write_json(folder / "poison.json", asdict(manifest))


def read_poisoned(folder: Path) -> tuple[Attack, Manifest]:
    """Read the attack, with its trigger, and the ground truth. For evaluation only.

    Raises:
        InputError: a file is missing or malformed, or the attack is not registered.
    """
    manifest = read_manifest(folder)
    state = folder / "trigger.safetensors"
    extra = {"state": read_tensors(state)} if state.is_file() else {}
    try:
        return make_attack(manifest.attack, **manifest.parameters, **extra), manifest
    except TypeError as error:
        raise InputError(f"{folder}: attack and parameters do not fit ({error})") from error
