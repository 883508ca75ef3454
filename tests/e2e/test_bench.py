"""Timings of a file: load, decode, start, run."""

from __future__ import annotations

import json

import numpy as np
import pytest

import nqconvert
import nqformat
from nqconvert.bench import Timing, bench_file
from nqconvert.cli import main
from nqformat import FormatError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(20, 96), torch.nn.ReLU(), torch.nn.Linear(96, 4))
    path = tmp_path_factory.mktemp("bench") / "model.nqz"
    nqconvert.convert(module, path, example_inputs=np.zeros((2, 20), np.float32))
    return path


def test_every_kind_of_work_is_timed_at_each_number_of_threads(model_file):
    found = bench_file(model_file, threads=(1, 2), repeats=3)
    kinds = [(t.work, t.threads) for t in found.timings]
    assert kinds == [(w, n) for n in (1, 2) for w in ("load", "decode", "start", "run")]
    assert found.file_bytes == model_file.stat().st_size
    assert found.decoded_bytes == 4 * (20 * 96 + 96 + 96 * 4 + 4)
    assert all(0 < t.best_ms <= t.median_ms for t in found.timings)
    rates = [t.megabytes_per_second for t in found.timings]
    assert [rate is not None for rate in rates] == [True, True, False, False] * 2
    assert found.engine in str(found)


def test_megabytes_per_second_are_of_the_median():
    timing = Timing(work="decode", threads=1, median_ms=500.0, best_ms=1.0, megabytes=100.0)
    assert timing.megabytes_per_second == pytest.approx(200.0)


def test_a_file_without_a_graph_is_decoded_only(tmp_path):
    path = tmp_path / "tensors.nqz"
    nqformat.save_file({"w": np.ones((4, 5), np.float32)}, path)
    found = bench_file(path, threads=(1,), repeats=1)
    assert [t.work for t in found.timings] == ["load", "decode"] and "no graph" in str(found)


def test_bad_input_is_refused(model_file, tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        bench_file(model_file, repeats=0)
    with pytest.raises(ValueError, match="at least 1"):
        bench_file(model_file, threads=(0,))
    broken = tmp_path / "broken.nqz"
    broken.write_bytes(b"\x89NQZ nothing")
    with pytest.raises(FormatError):
        bench_file(broken)


def test_the_command_prints_a_table_or_json(model_file, capsys):
    assert main(["bench", str(model_file), "--repeats", "1", "--threads", "1"]) == 0
    assert "decode" in capsys.readouterr().out
    command = ["bench", str(model_file), "--repeats", "1", "--threads", "1,2", "--input", "shape=3,20"]
    assert main([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["timings"]) == 8
    assert main(["bench", str(model_file), "--threads", "one"]) == 2
