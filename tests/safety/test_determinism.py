"""The same bytes from the same inputs: in every run, at every number of threads, on both kernel paths."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nqformat
from fuzz.golden import golden_files
from nqformat import Codebook, CodebookTensor

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CONVERT = """
import sys, hashlib, numpy as np, nqconvert
rng = np.random.default_rng(4)
kept = rng.random((4, 40, 30)) < 0.3
weights = np.where(kept, rng.normal(size=(4, 40, 30)), 0).astype(np.float32)
state = {f"layer{i}.weight": weights[i] for i in range(4)}
state |= {f"layer{i}.bias": rng.normal(size=30).astype(np.float32) for i in range(4)}
nqconvert.convert(state, sys.argv[1], preset="deep-compression", seed=3)
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
"""

POST_TRAINING = """
import sys, hashlib, numpy as np, nqconvert
from onnx import TensorProto, helper, numpy_helper
rng = np.random.default_rng(4)
shapes = {"conv": (24, 16, 3, 3), "conv_bias": (24,), "hidden": (384, 160), "hidden_bias": (160,)}
shapes["out"] = (160, 10)
arrays = {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
nodes = [
    helper.make_node("Conv", ["x", "conv", "conv_bias"], ["a"]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Flatten", ["b"], ["c"]),
    helper.make_node("Gemm", ["c", "hidden", "hidden_bias"], ["d"]),
    helper.make_node("Relu", ["d"], ["e"]),
    helper.make_node("MatMul", ["e", "out"], ["y"]),
]
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 6, 6])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])
tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
graph = helper.make_graph(nodes, "g", [x], [y], tensors)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
inputs = rng.normal(size=(100, 16, 6, 6)).astype(np.float32)
repairs = nqconvert.RepairSettings(scale_fit=True, distillation="weights", distillation_epochs=1)
report = nqconvert.convert(
    model, sys.argv[1], preset="post-training", calibration=inputs, rate_penalty=0.3, repairs=repairs, seed=3
)
assert any("distillation: divergence" in note for note in report.notes)
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
"""

LINEAR_ALGEBRA = """
import hashlib, numpy as np
from nqconvert.blas_threads import one_blas_thread
x = np.random.default_rng(0).normal(size=(577, 2048)).astype(np.float32)
with one_blas_thread():
    square = (x @ x.T).astype(np.float64) + 100 * np.eye(577)
    found = (square, x[:64].T @ x[:64], np.linalg.cholesky(square), np.linalg.inv(square))
print(hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in found)).hexdigest())
"""


def run_code(code: str, *arguments: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("n_runs", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_conversions_give_the_same_bytes_in_every_process(n_runs: int, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    found = {
        run_code(
            CONVERT,
            str(tmp_path / f"{run}.nqz"),
            PYTHONHASHSEED=str(run),
            OMP_NUM_THREADS=str(1 + run % 2),
            NQFORMAT_KERNELS=("numpy", "numba")[run % 2],
        )
        for run in range(n_runs)
    }
    assert len(found) == 1


def test_linear_algebra_is_the_same_on_one_and_two_threads() -> None:
    pytest.importorskip("threadpoolctl")
    found = {run_code(LINEAR_ALGEBRA, **dict.fromkeys(THREADS, number)) for number in "12"}
    assert len(found) == 1


def test_post_training_gives_the_same_bytes_on_one_and_two_threads(tmp_path: Path) -> None:
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    found = {
        run_code(POST_TRAINING, str(tmp_path / "m.nqz"), **dict.fromkeys(THREADS, number)) for number in "12"
    }
    assert len(found) == 1


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_decoding_does_not_depend_on_threads(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    rng = np.random.default_rng(5)
    kept = rng.random((800, 1000)) < 0.4
    tensors = {
        "mask": CodebookTensor(
            indices=np.where(kept, rng.integers(1, 9, kept.shape), 0).astype(np.uint8),
            codebook=Codebook(values=np.append(0, rng.normal(size=8)).astype(np.float32)),
        ),
        "dense": CodebookTensor(
            indices=rng.integers(0, 16, (700, 900)).astype(np.uint8),
            codebook=Codebook(values=rng.normal(size=16).astype(np.float32)),
        ),
    }
    content = nqformat.save(tensors)
    assert nqformat.save(tensors) == content
    digests = set()
    for threads in (1, 2, 8):
        found = nqformat.load(content, threads=threads)
        digests.add(hashlib.sha256(b"".join(array.tobytes() for array in found.values())).hexdigest())
    assert len(digests) == 1


def test_what_is_read_and_written_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for content in golden_files().values():
        with nqformat.from_bytes(content, bfloat16="uint16") as first, nqformat.from_bytes(content) as second:
            assert first.keys() == second.keys()
            for name in first:
                again = second.get_tensor(name)
                assert first.get_tensor(name).tobytes() == again.tobytes()


def test_numbers_in_files_have_an_explicit_byte_order() -> None:
    """Big-endian machines are not at hand: every type that bytes are read or written as says its order."""
    folder = Path(nqformat.__file__).parent
    suspicious = []
    for path in folder.glob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            native = any(f'"{kind}"' in line for kind in ("u2", "u4", "u8", "i2", "i4", "f2", "f4", "f8"))
            packs = "struct." in line and '("' in line and '("<' not in line
            kinds = ("uint16", "uint32", "uint64", "float32", "int64")
            from_bytes = "frombuffer(" in line and any(f"dtype=np.{kind}" in line for kind in kinds)
            if native or packs or from_bytes:
                suspicious.append(f"{path.name}:{number}: {line.strip()}")
    assert suspicious == []
