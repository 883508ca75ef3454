"""The search for a bound, without any model."""

from __future__ import annotations

import math

import pytest

from nqconvert.accuracy import Drop
from nqconvert.presets import ConvertSettings
from nqconvert.quantization import QuantizedModel
from nqconvert.search import Attempt, Target, search_drop, search_rate
from nqformat import ConversionError


def attempt(settings):
    """Files that shrink as the knob is turned, with a floor of 100 bytes."""
    if settings.method == "uniform":
        size = 100 + 1000 * math.log2(16.01 / settings.step)
    elif settings.method == "ecsq":
        size = 100 + 500 * math.log2(101 / settings.rate_penalty)
    else:
        size = 100 + 1000 * math.log2(settings.clusters)
    nothing = QuantizedModel(tensors={}, exact={})
    return Attempt(settings=settings, model=nothing, file_bytes=int(size), distortion=1 / size)


@pytest.mark.parametrize("method", ["uniform", "ecsq"])
@pytest.mark.parametrize("bound", [1500, 2777, 8123])
def test_the_search_comes_close_to_its_bound_from_below(method, bound):
    lines = []
    found = search_rate(ConvertSettings(method=method), attempt, bound, lines.append)
    assert 0.99 * bound <= found.file_bytes <= bound
    assert len(lines) <= 14 and f"{bound:,} bytes" in lines[0]


@pytest.mark.parametrize("bound", [100, 1099, 1100, 3000, 6644, 10099, 10100, 10**9])
def test_whole_numbers_of_clusters_are_found(bound):
    found = search_rate(ConvertSettings(method="kmeans"), attempt, bound, lambda line: None)
    best = max(k for k in range(1, 1025) if attempt(ConvertSettings(clusters=k)).file_bytes <= bound)
    assert found.settings.clusters == pytest.approx(best, rel=0.02)


@pytest.mark.parametrize("method", ["uniform", "ecsq", "kmeans", "none"])
def test_a_bound_that_cannot_be_met_is_an_error_with_the_bytes_needed(method):
    with pytest.raises(ConversionError, match=r"99 bytes cannot be met: method .* needs \d"):
        search_rate(ConvertSettings(method=method), attempt, 99, lambda line: None)


def test_targets_are_one_bound_on_bytes():
    sizes = {"original_bytes": 4000, "n_values": 1000}
    assert Target().max_bytes(**sizes) is None
    assert Target(ratio=40).max_bytes(**sizes) == 100
    assert Target(size=123.9).max_bytes(**sizes) == 123
    with pytest.raises(ValueError, match="only one"):
        Target(bits=2, size=3)
    with pytest.raises(ValueError, match="target_bits"):
        Target(bits=0)


def test_a_coarser_grid_of_less_error_is_taken():
    def humps(settings):
        made = attempt(settings)
        error = 0.0 if 2.0 < settings.step < 2.5 else 1.0 + settings.step
        return Attempt(settings=settings, model=made.model, file_bytes=made.file_bytes, distortion=error)

    bound = attempt(ConvertSettings(method="uniform", step=1.8)).file_bytes
    found = search_rate(ConvertSettings(method="uniform"), humps, bound, lambda line: None)
    assert 2.0 < found.settings.step < 2.5


@pytest.mark.parametrize("method", ["uniform", "ecsq", "kmeans"])
@pytest.mark.parametrize("allowed", [0.0, 1.0, 30.0, 60.0])
def test_the_smallest_file_that_keeps_an_accuracy_is_found_in_ten_evaluations(method, allowed):
    seen = []

    def judge(found):
        seen.append(found.file_bytes)
        return Drop(points=max(0.0, 80.0 - found.file_bytes / 100))

    found = search_drop(ConvertSettings(method=method), attempt, judge, allowed, lambda line: None)
    assert len(seen) <= 10
    assert found.file_bytes == min(size for size in seen if size >= 100 * (80 - allowed))
    assert found.file_bytes <= 100 * (80 - allowed) * 1.1 + 1000


def test_the_interval_decides_where_there_is_one():
    lines = []

    def judge(found):
        points = 10_000 / found.file_bytes
        return Drop(points=points, low=points - 2, high=points + 2, n_samples=99)

    found = search_drop(ConvertSettings(method="ecsq"), attempt, judge, 6.0, lines.append)
    assert 2500 <= found.file_bytes <= 2500 * 1.05
    assert len(lines) <= 10 and all("bytes, drop" in line and "95 %" in line for line in lines)
    assert {line.rpartition(": ")[2] for line in lines} == {"kept", "too much"}
    assert "rate penalty" in lines[0]


@pytest.mark.parametrize("size", [500, 2000, 9000])
def test_no_loss_on_the_samples_is_a_bound_that_can_be_met(size):
    def judge(found):
        lost = 0.0 if found.file_bytes >= size else 0.1
        return Drop(points=lost, low=lost - 1, high=lost + 1, n_samples=100)

    found = search_drop(ConvertSettings(method="ecsq"), attempt, judge, 0.0, lambda line: None)
    assert size <= found.file_bytes <= 1.05 * size + 100


def test_an_accuracy_out_of_reach_names_the_best_try():
    tried = []

    def judge(found):
        tried.append(found.settings.rate_penalty)
        return Drop(points=2.0 + 0.1 * len(tried), low=1.5, high=2.5 + 0.1 * len(tried), n_samples=50)

    with pytest.raises(
        ConversionError, match=r"at most 2 points cannot be kept with method 'ecsq'; the best"
    ) as error:
        search_drop(ConvertSettings(method="ecsq"), attempt, judge, 2.0, lambda line: None)
    assert len(tried) == 2 and min(tried) == pytest.approx(1e-7)
    assert f"{tried[0]:.3g} with" in str(error.value) and "drop 2.100 points" in str(error.value)
    with pytest.raises(ValueError, match="lossy"):
        search_drop(ConvertSettings(method="none"), attempt, judge, 9.0, lambda line: None)
