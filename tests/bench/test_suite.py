"""Reading a suite, and the cells it asks for."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from cgd.bench import read_suite
from cgd.bench.suite import Scene
from cgd.errors import InputError

SUITES = Path(__file__).parents[2] / "suites"

SUITE = """
name = "tiny"
question = "Does it run?"
protocol = "small"
dataset = "toy"
train = "train.parquet"
test = "test.parquet"
defended = 60
trusted = 30
guide_epochs = 1
model = "tiny_resnet"
epochs = 1
flip = true
attacks = ["none", "badnets", "sig"]
rates = [0.05, 0.1]
defenses = ["default"]
seeds = [4, 2]
"""


def read(tmp_path: Path, *changes: tuple[str, str]) -> Any:
    text = SUITE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "tiny.toml").write_text(text)
    return read_suite(tmp_path / "tiny.toml")


def test_a_suite_is_what_its_file_says(tmp_path: Path) -> None:
    suite = read(tmp_path)
    for name, value in tomllib.loads(SUITE).items():
        assert getattr(suite, name) == (tuple(value) if isinstance(value, list) else value)
    assert suite.guide == "stand-in"


def test_a_grid_stopped_half_way_has_whole_seeds_each_with_its_benign_case(tmp_path: Path) -> None:
    one_seed = [("none", 0), ("badnets", 0.05), ("sig", 0.05), ("badnets", 0.1), ("sig", 0.1)]
    expected = [Scene(attack, rate, seed) for seed in (4, 2) for attack, rate in one_seed]
    assert list(read(tmp_path).scenes()) == expected
    assert len({scene.key for scene in expected}) == len(expected)


def test_an_entry_can_name_its_rate_and_settings(tmp_path: Path) -> None:
    entries = '"sig@0.1", "blended alpha=0.1 pattern_seed=3", "wanet@0.1 per-batch"'
    suite = read(tmp_path, ('"sig"', entries), ("seeds = [4, 2]", "seeds = [4]"))
    blended = ("alpha=0.1", "pattern_seed=3")
    scenes = list(suite.scenes())
    assert len(scenes) == len(set(scenes))
    assert set(scenes) == {
        Scene("none", 0.0, 4),
        Scene("sig", 0.1, 4),
        Scene("wanet", 0.1, 4, (), True),
        *(Scene("badnets", rate, 4) for rate in (0.05, 0.1)),
        *(Scene("blended", rate, 4, blended) for rate in (0.05, 0.1)),
    }
    assert Scene("blended", 0.05, 4, blended).make_attack().parameters()["alpha"] == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"badnets"', '"badnets@x"'), "the rate after @ must be a number"),
        (('"badnets"', '"badnets colour=1"'), "badnets takes patch"),
        (('name = "tiny"', ""), "name"),
        (('name = "tiny"', 'name = "tiny'), "not valid TOML"),
        (("epochs = 1\nflip", "epoks = 1\nflip"), "unknown settings epoks"),
        (("epochs = 1\nflip", 'epochs = "1"\nflip'), "epochs must be of type integer, not '1'"),
        (('["default"]', '"default"'), "defenses must be of type array, not 'default'"),
        (('"badnets"', '"wormnet"'), "no attack 'wormnet'; there are .*badnets"),
        (('["default"]', '["magic"]'), "no defense 'magic'; there are default, released"),
    ],
)
def test_a_faulty_suite_is_named_with_its_fault(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=rf"tiny\.toml: .*{message}"):
        read(tmp_path, change)


def test_a_missing_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        read_suite(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_suites_that_come_with_the_project_can_be_read(path: Path) -> None:
    suite = read_suite(path)
    assert suite.question.endswith("?")
    assert suite.protocol in ("small", "full")
