"""Tables of the inference benchmark, from results in which peers, threads and rows may lack."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[3] / "benchmarks" / "tables" / "inference.py"


@pytest.fixture(scope="module")
def tables():
    if not PATH.exists():
        pytest.skip("the benchmarks are not part of an installed package")
    spec = importlib.util.spec_from_file_location("inference_tables", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(native, **others):
    times = {"native": native} | others
    cells = {name.replace("_", " "): {"best": t, "median": t} for name, t in times.items()}
    return {"milliseconds": cells, "weight_bytes": {"native": 125, "ort": 1000}}


@pytest.fixture
def results():
    engines = {
        name: {"cpu_seconds": 0.15, "peak_bytes": 61e6, "steady_bytes": 59e6} for name in ("native", "ort")
    }
    return {
        "machine": {"cpu": "a processor", "processors": 2},
        "rounds": 15,
        "rows": {
            "LeNet-5, 8 %, batch 1": {"1": row(0.05, ort=0.1, torch=0.2)},
            "FC 40 x 60, 16 clusters, batch 1": {"1": row(1.0, ort=2.0), "2": row(1.0, ort=1.5)},
            "FC 40 x 60, 16 clusters, batch 8": {"2": row(1.0, ort=0.5)},
        },
        "processes": {"LeNet-5, 8 %, batch 1": engines},
    }


def test_times_are_multiples_of_the_native_ones(tables, results):
    lines = tables.inference(results)
    assert "| LeNet-5, 8 %, batch 1 | 50.0 | 2.00 |  | 4.00 |  |  |  | 0.125 |" in lines


def test_batches_of_a_shape_are_one_line(tables, results):
    lines = tables.inference(results)
    assert "| 40 x 60 | 2.00 / 1.50 |  / 0.50 | ,  |" in lines


def test_processes_have_all_engines(tables, results):
    assert tables.inference(results)[-1] == "| LeNet-5, 8 %, batch 1 | 0.15 / 0.15 | 61 / 61 | 59 / 59 |"


def test_tables_without_rows_are_left_out(tables, results):
    del results["processes"]
    results["rows"] = {"LeNet-5, 8 %, batch 1": results["rows"]["LeNet-5, 8 %, batch 1"]}
    lines = tables.inference(results)
    assert lines[-1].startswith("| LeNet-5") and not any("clusters:" in line for line in lines)
