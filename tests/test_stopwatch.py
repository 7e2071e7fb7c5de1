"""Seconds of work that is killed and continued."""

import time
from pathlib import Path

import pytest

from cgd.stopwatch import Stopwatch


def test_seconds_before_a_kill_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, now = tmp_path / "seconds.json", 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    first = Stopwatch(path)
    now += 5
    assert first.keep() == 5
    now += 3
    assert first.keep() == 8
    now += 1000  # lost work, and the time until somebody goes on
    second = Stopwatch(path)
    assert second.kept == 8
    now += 2
    assert second.keep() == 10


def test_without_a_file_it_only_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch()
    now = 4.0
    assert watch.keep() == watch.kept == 4.0
