"""The Python examples of the user guide run."""

import re
from pathlib import Path

import pytest

from cgd.attacks import ATTACKS

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgd.attacks.base.ATTACKS", dict(ATTACKS))
    for example in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(example, str(page), "exec"), {"__name__": "example"})
