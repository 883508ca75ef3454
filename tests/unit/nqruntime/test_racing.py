"""Timing of candidates that take turns, on a clock that the test moves."""

from __future__ import annotations

import pytest

from nqruntime.lowering import racing
from nqruntime.lowering.racing import best_of_each


class Machine:
    """Runs that take as long as `durations` says, by candidate and round; the last duration stays."""

    def __init__(self, *durations):
        self.now = 0.0
        self.rounds = [0] * len(durations)
        self.runs = [self._run(k, taken) for k, taken in enumerate(durations)]

    def _run(self, k, durations):
        def run():
            self.now += durations[min(self.rounds[k], len(durations) - 1)]
            self.rounds[k] += 1

        return run

    def race(self, **settings):
        return best_of_each(self.runs, clock=lambda: self.now, **settings)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(racing, "_PAUSE_SECONDS", 0)


def test_a_clear_winner_needs_two_series():
    machine = Machine([1e-3], [2e-3])
    assert machine.race(seconds=0) == pytest.approx([1e-3, 2e-3])
    assert machine.rounds == [9, 9]  # the first is not timed


def test_a_disturbance_does_not_decide():
    slow = [9e-3] * 5  # a whole series of one candidate
    assert Machine([*slow, 1e-3], [2e-3]).race(seconds=0) == pytest.approx([1e-3, 2e-3])
    machine = Machine([*slow, 3e-3, 3e-3, 1e-3, 3e-3, 1e-3], [2e-3])  # goes on in the second
    assert machine.race(seconds=0) == pytest.approx([1e-3, 2e-3])
    assert machine.rounds == [13, 13]


def test_candidates_that_are_nearly_equal_are_timed_again_but_not_for_ever():
    machine = Machine([1.05e-3], [1e-3])
    assert machine.race(seconds=0) == pytest.approx([1.05e-3, 1e-3])
    assert machine.rounds == [17, 17]
    slow = Machine([1.05], [1.0])
    slow.race(seconds=0)
    assert slow.rounds == [5, 5]


def test_one_candidate_alone_is_timed_once():
    machine = Machine([1e-3, 3e-3, 2e-3])
    assert machine.race(seconds=0.01) == pytest.approx([2e-3])
    assert 5 <= machine.rounds[0] <= 6
