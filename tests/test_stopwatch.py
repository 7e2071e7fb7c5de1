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


def test_a_ticking_watch_keeps_what_a_kill_would_lose(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    watch = Stopwatch(path)
    with watch.ticking(every=0.01):
        deadline = time.monotonic() + 30
        while not path.is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert 0 < Stopwatch(path).kept <= watch.keep()
    written = path.read_bytes()
    time.sleep(0.05)
    assert path.read_bytes() == written
