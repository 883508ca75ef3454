"""Curves of the post-training benchmark: what bytes at equal accuracy mean."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[3] / "benchmarks" / "posttraining_goals.py"


@pytest.fixture(scope="module")
def goals():
    if not PATH.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    spec = importlib.util.spec_from_file_location("posttraining_goals", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def rows(method, part, points):
    return {
        f"{method} {place} {point}": {"method": method, part: place, "file_bytes": point[0], "test": point[1]}
        for place, found in points.items()
        for point in found
    }


def test_a_curve_never_falls_and_keeps_its_mean(goals):
    points = [(100, 0.5), (200, 0.7), (300, 0.6), (400, 0.6), (500, 0.9)]
    found = goals.monotone(points[::-1])
    assert [size for size, _ in found] == [100, 200, 300, 400, 500]
    assert [accuracy for _, accuracy in found] == pytest.approx([0.5, *[1.9 / 3] * 3, 0.9])


def test_bytes_are_interpolated_between_the_points_around(goals):
    curve = [(100, 0.5), (400, 0.7), (500, 0.7), (800, 0.9)]
    assert goals.bytes_at(curve, 0.6) == pytest.approx(200)
    assert goals.bytes_at(curve, 0.7) == pytest.approx(400)
    assert goals.bytes_at(curve, 0.5) == pytest.approx(100) and goals.bytes_at(curve, 0.9) == pytest.approx(
        800
    )
    assert goals.bytes_at(curve, 0.49) is None and goals.bytes_at(curve, 0.91) is None
    assert goals.accuracy_at(curve, 200) == pytest.approx(0.6)
    assert goals.accuracy_at(curve, 99) is None and goals.accuracy_at(curve, 10_000) == 0.9


def test_a_ratio_is_over_the_best_mode_and_the_mean_of_seeds(goals):
    peers = {
        "dependent": [(900, 0.8), (1000, 0.85), (1600, 0.9)],
        "plain": [(1200, 0.8), (1300, 0.9), (2000, 0.95)],
    }
    ours = {
        0: [(300, 0.8), (500, 0.85), (650, 0.89)],
        1: [(300, 0.8), (780, 0.89), (900, 0.91)],
        2: [(700, 0.89)],
    }
    network = {
        "rows": {
            **rows("nncodec", "mode", peers),
            **rows("obs", "seed", ours),
            "original": {"method": "original", "file_bytes": 4000, "test": 0.9},
        }
    }
    goal = goals.Goal(network="n", kind="ratio", at=0.89, bound=0.55, text="at 89 %")
    peer = goals.nncodec_bytes(network, 0.89)
    assert 1289 < peer < 1290
    assert goals.measured(goal, network) == pytest.approx([650 / peer, 780 / peer])
    assert goals.luckiest_bytes(network, 0.89) == 1300
    drop = goals.Goal(network="n", kind="drop", at=650, bound=0.5, text="at 650 bytes")
    assert goals.measured(drop, network)[0] == pytest.approx(1.0)
