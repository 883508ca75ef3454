"""Methods side by side on one small network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nqconvert
from nqconvert.baselines import BASELINES, baseline_file
from nqconvert.cli import main
from nqconvert.cli.compare_command import split_targets
from nqconvert.comparison import parse_target, wilson_interval
from nqformat import ConversionError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

METHODS = ["ecsq", "hessian-kmeans", "inq", "kmeans", "obs", "uniform", "vq"]


def blobs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(99).normal(size=(4, 20))
    return (centres[labels] + rng.normal(size=(n, 20))).astype(np.float32), labels


@pytest.fixture(scope="module")
def module() -> Any:
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(20, 96), torch.nn.ReLU(), torch.nn.Linear(96, 4))
    inputs, labels = (torch.tensor(a) for a in blobs(400, 1))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(made(inputs), labels).backward()
        optimizer.step()
    return made.eval()


def test_all_methods_meet_the_bounds_on_one_mask_and_are_judged(module, tmp_path):
    inputs, labels = blobs(300, 2)
    comparison = nqconvert.compare(
        module,
        example_inputs=inputs[:4],
        targets=["1100B", "1500B"],
        test=(inputs, labels),
        calibration=blobs(100, 3)[0],
        density=0.5,
        batch_size=64,
    )
    quantized = [row for row in comparison.rows if row.target]
    assert [row.method for row in quantized] == [name for name in METHODS for _ in range(2)]
    for row in quantized:
        assert row.file_bytes is not None and row.file_bytes <= int(row.target[:-1])
    for row in comparison.rows:
        assert row.note or (0 <= row.low <= row.accuracy <= row.high <= 1)
    original, pruned = comparison.rows[:2]
    assert (original.method, pruned.method) == ("original", "pruned")
    assert original.accuracy > 0.9 and (original.lost, original.won) == (0, 0)
    n_right = round(original.accuracy * 300)
    for row in comparison.rows[1:]:
        assert round(row.accuracy * 300) == n_right - row.lost + row.won
    assert {row.method for row in comparison.rows[2 + len(quantized) :]} == {
        baseline.name for baseline in BASELINES
    }
    assert len(str(comparison).splitlines()) == 3 + len(comparison.rows) + len(comparison.notes)
    json.dumps(comparison.to_json(), allow_nan=False)
    pytest.importorskip("matplotlib")
    comparison.save_plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"


def test_a_bound_that_one_method_misses_is_a_row_and_works_without_a_test(tmp_path):
    weights = {"w": np.random.default_rng(0).normal(size=(50, 60)).astype(np.float32)}
    comparison = nqconvert.compare(weights, methods=["uniform"], targets=[3, "10B"], baselines=False)
    first, second = comparison.rows[1:]
    assert first.file_bytes <= 3 * 3000 / 8 and first.accuracy is None
    assert second.file_bytes is None and "10 bytes cannot be met" in second.note
    with pytest.raises(ConversionError, match="needs a test"):
        comparison.save_plot(tmp_path / "p.png")
    with pytest.raises(ConversionError, match="no graph"):
        nqconvert.compare(weights, methods=["uniform"], test=(np.ones((1, 2)), np.ones(1)))


def test_baselines_decode_to_integers_times_a_scale(module):
    source = nqconvert.load_source(module, example_inputs=np.zeros((1, 20), np.float32))
    for baseline in BASELINES:
        n_bytes, tensors = baseline_file(baseline, source)
        weight = source.tensors["0.weight"]
        steps = np.abs(weight).max(axis=1, keepdims=True) / (2 ** (baseline.n_bits - 1) - 1)
        assert (np.abs(tensors["0.weight"] - weight) <= 0.5001 * steps).all()
        assert n_bytes > weight.size * baseline.n_bits / 8 * 0.7


def test_targets_and_intervals_are_read_as_written():
    assert split_targets("3, 4,5bits") == ["3bits", "4bits", "5bits"]
    assert split_targets("20x,40x") == ["20x", "40x"] and split_targets("1500") == ["1500"]
    assert parse_target("1.5bit")[1].bits == 1.5 and parse_target("1500")[1].size == 1500
    for bad in ("", "bits", "3 apples", "-2x"):
        with pytest.raises(ValueError, match="target"):
            parse_target(bad)
    with pytest.raises(ValueError, match="unknown quantizer"):
        nqconvert.compare({"w": np.ones((9, 9))}, methods=["magic"])
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == pytest.approx(1)


def test_the_command_line_prints_a_table_or_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("compared_factory.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))\n"
    )
    inputs, labels = blobs(50, 4)
    np.savez("test.npz", x=inputs, targets=labels)
    command = [
        "compare",
        "compared_factory:make",
        "--example-input",
        "shape=1,20",
        "--methods",
        "uniform,inq",
    ]
    command += ["--targets", "6,7bits", "--test", "test.npz", "--calibration", "test.npz"]
    assert main([*command, "--no-baselines"]) == 0
    assert "uniform   6bits" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows[:5]] == ["original", "uniform", "uniform", "inq", "inq"]
    assert main([*command[:-4], "--test", "shape=2,20"]) == 2
