"""Scores of evaluations and the interval of what is lost between two of them."""

from __future__ import annotations

import numpy as np
import pytest

from nqconvert.accuracy import Drop, drop_between, score_of
from nqformat import ConversionError


def score(samples):
    return score_of(lambda run: samples, lambda feeds: [])


def test_a_number_is_a_score_without_samples():
    assert score(0.5).mean == 0.5 and score(np.float32(0.5)).samples is None
    drop = drop_between(score(0.9), score(0.85))
    assert drop.points == pytest.approx(5.0) and drop.high is None
    assert drop.keeps(5.1) and not drop.keeps(4.9)
    assert "no interval" in str(drop)


def test_samples_may_have_further_axes():
    found = score([[True, False], [True, True]])
    assert found.mean == 0.75 and found.samples.tolist() == [0.5, 1.0]


def test_equal_answers_leave_an_interval_around_nothing():
    right = score(np.arange(1000) % 3 > 0)
    drop = drop_between(right, right)
    assert drop.points == 0.0 and drop.low == -drop.high and 0.1 < drop.high < 0.3
    assert drop.keeps(0.0)


def test_pairs_that_agree_do_not_widen_the_interval():
    rng = np.random.default_rng(0)
    before = rng.random(4000) < 0.7
    after = before.copy()
    after[:20] = ~after[:20]
    drop = drop_between(score(before), score(after))
    alone = 196 * np.sqrt(2 * 0.7 * 0.3 / 4000)
    assert drop.high - drop.low < alone / 4
    assert drop.low < drop.points < drop.high


@pytest.mark.parametrize("share", [0.005, 0.02, 0.1])
def test_the_interval_holds_the_true_drop_in_19_of_20_draws(share):
    """1,000 draws: 95 % have a standard error of 0.7 points."""
    rng = np.random.default_rng(1)
    n, inside = 2000, 0
    for _ in range(1000):
        n_lost, n_gained, _rest = rng.multinomial(n, [share, share / 2, 1 - 1.5 * share])
        before, after = np.zeros(n), np.zeros(n)
        before[:n_lost] = 1
        after[n_lost : n_lost + n_gained] = 1
        drop = drop_between(score(before), score(after))
        inside += drop.low <= 100 * share / 2 <= drop.high
    assert 930 <= inside <= 975


def test_losses_have_the_interval_of_their_mean_difference():
    rng = np.random.default_rng(2)
    before = rng.normal(size=500)
    drop = drop_between(score(before), score(before - 0.1 + 0.01 * rng.normal(size=500)))
    assert 9.9 < drop.low < drop.points < drop.high < 10.1


def test_a_bound_is_kept_with_confidence_or_without_any_loss():
    assert Drop(points=0.1, low=-0.1, high=0.3).keeps(0.3)
    assert not Drop(points=0.1, low=-0.1, high=0.3).keeps(0.29)
    assert Drop(points=0.0, low=-0.2, high=0.2).keeps(0.0)
    assert Drop(points=-0.1, low=-0.4, high=0.2).keeps(0.1)


@pytest.mark.parametrize("returned", ["good", None, [], np.nan, [0.5, np.inf], [[1.0], [1.0, 2.0]]])
def test_what_is_no_score_is_refused(returned):
    with pytest.raises(ValueError, match="evaluate"):
        score(returned)


def test_different_samples_cannot_be_paired():
    with pytest.raises(ValueError, match="3 samples, then of 2"):
        drop_between(score([1, 0, 1]), score([1, 0]))
    with pytest.raises(ConversionError, match="no graph"):
        score_of(lambda run: 1.0, None)


@pytest.mark.parametrize(
    ("drop", "warns"),
    [
        (Drop(points=82.4, low=79.0, high=85.3, n_samples=597), True),
        (Drop(points=1.5), True),
        (Drop(points=1.5, low=0.9, high=2.1, n_samples=100), False),
        (Drop(points=-3.0, low=-4.0, high=-2.0, n_samples=100), False),
    ],
)
def test_loss_that_is_sure_is_warned_of(drop: Drop, warns: bool) -> None:
    assert bool(drop.warning) == warns
    assert not warns or f"{drop.points:.1f} points lower" in drop.warning
