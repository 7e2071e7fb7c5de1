"""Where clean images come from, as text and as rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgd.defenses.clean import Clean, read_clean
from cgd.errors import InputError


@given(st.sampled_from(["cgd", "true"]), st.integers(1, 100))
def test_a_share_is_read_in_percent(part: str, percent: int) -> None:
    assert read_clean(f"{part}:{percent}%") == Clean(part, percent / 100)


@pytest.mark.parametrize("text", ["", "photos/", "cgd%5", "hf:cgd:5%"])
def test_anything_else_is_not_a_part(text: str) -> None:
    assert read_clean(text) is None


@pytest.mark.parametrize("text", ["cgd:5", "true:%", "cgd:x%"])
def test_a_part_without_a_share_that_can_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="use cgd, cgd:5%"):
        read_clean(text)


@pytest.mark.parametrize("text", ["cgd:0%", "true:101%"])
def test_a_share_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="share"):
        read_clean(text)


@given(st.integers(1, 60), st.integers(0, 3))
def test_a_draw_is_a_share_of_all_the_data(percent: int, seed: int) -> None:
    rows = np.arange(0, 200, 3)
    asked = round(percent / 100 * 100)
    drawn = Clean("cgd", percent / 100).draw(rows, 100, seed)
    assert len(drawn) == asked
    assert len(np.unique(drawn)) == asked
    assert np.isin(drawn, rows).all()
    assert np.array_equal(drawn, Clean("cgd", percent / 100).draw(rows, 100, seed))


def test_all_of_a_part_and_too_little_of_it() -> None:
    rows = np.array([1, 4])
    assert np.array_equal(Clean("cgd").draw(rows, 10, 0), rows)
    with pytest.raises(InputError, match="ask for less"):
        Clean("cgd", 0.5).draw(rows, 10, 0)
