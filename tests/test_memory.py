"""Memory that is kept in the meantime, and given back afterwards."""

import platform
import resource

import pytest
import torch

from cgd import memory
from cgd.memory import memory_kept

LARGE = 96 * 2**20
"""Bytes of a block that glibc maps anew each time, or gives back once it is free."""


def faults(repetitions: int = 4) -> int:
    """Pages that the system handed out while large blocks were taken and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repetitions):
        torch.empty(LARGE, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_blocks_are_kept_in_the_meantime_only() -> None:
    usual = faults()
    assert usual > 0
    with memory_kept():
        faults(8)
        assert faults() < usual / 10
    faults(1)
    assert faults() > usual / 2


def test_memory_is_given_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[dict[int, int]] = []
    monkeypatch.setattr(memory, "_set", settings.append)
    with pytest.raises(ValueError, match="no"), memory_kept():
        raise ValueError("no")
    assert settings == [memory.MEANWHILE, memory.AFTERWARDS]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_is_glibc", lambda: False)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    with memory_kept():
        pass
