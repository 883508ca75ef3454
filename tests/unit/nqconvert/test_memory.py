"""Peak memory of a stretch of work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nqconvert import memory
from nqconvert.memory import PeakMemory, StageClock

MIB = 1 << 20

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")


@needs_proc
def test_a_passing_allocation_is_seen_above_the_start():
    with PeakMemory() as first:
        np.ones(64 * MIB, dtype=np.uint8).sum()
    assert first.peak_bytes is not None and 60 * MIB < first.peak_bytes < 160 * MIB


@needs_proc
def test_work_below_an_earlier_high_is_seen_by_samples():
    np.ones(128 * MIB, dtype=np.uint8).sum()
    with PeakMemory() as peak:
        held = np.ones(48 * MIB, dtype=np.uint8)
        for _ in range(20):
            held.sum()
    assert peak.peak_bytes is not None and peak.peak_bytes > 40 * MIB


def test_nothing_is_claimed_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATM", tmp_path / "none")
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    with PeakMemory() as peak:
        pass
    assert peak.peak_bytes is None


def test_a_clock_adds_up_stages_in_their_order_even_when_they_fail():
    clock = StageClock()
    with clock.stage("b"):
        pass
    with pytest.raises(KeyError), clock.stage("a"):
        raise KeyError
    first = clock.seconds["b"]
    with clock.stage("b"):
        pass
    assert list(clock.seconds) == ["b", "a"] and clock.seconds["b"] > first
