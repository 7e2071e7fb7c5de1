"""The examples of the user guide work."""

import re
from pathlib import Path

import pytest

from cgd.attacks import ATTACKS
from cgd.bench import read_suite

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgd.attacks.base.ATTACKS", dict(ATTACKS))
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(example, str(page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_suites_can_be_read(page: Path, tmp_path: Path) -> None:
    for number, example in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(), re.S)):
        path = tmp_path / f"{number}.toml"
        path.write_text(example)
        assert read_suite(path).grids
