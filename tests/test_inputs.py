"""What options name: opened, and refused where it does not fit together."""

import json
from collections.abc import Callable
from pathlib import Path

from cgd.inputs import ImportOptions, Source

FolderMaker = Callable[..., Path]


def source(folder: Path) -> Source:
    return Source(str(folder), None, None, 0, "cpu")


def test_an_index_counts_the_images_that_could_not_be_used(
    image_folder: FolderMaker, tmp_path: Path
) -> None:
    folder = image_folder(classes=("a", "b"), per_class=10)
    (folder / "a" / "0.png").write_bytes(b"damaged")
    for name, values in (("rows", [12]), ("labels", [0] * 10 + [1, 1, 0] + [1] * 7)):
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    for listed in ((tmp_path / "rows.json", None), (None, tmp_path / "labels.json")):
        made = ImportOptions(*listed, None, 0, ()).open(source(folder))
        assert [made.data.paths[row] for row in made.manifest.poison] == ["b/2.png"]
