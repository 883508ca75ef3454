"""Quantized tensors that lie in a temporary file, and the memory that a conversion takes with them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import nqconvert
from nqconvert import memory, tensor_spool
from nqconvert.tensor_spool import TensorSpool
from nqformat import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    GroupedCodebook,
    GroupedTensor,
    RawTensor,
    Scales,
    Tensor,
)
from nqformat.dtypes import DType


def tensors() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    scales = Scales.along_axis(np.ones(60, np.float32), (60, 80), 0, DType.FLOAT16)
    return {
        "codebook": CodebookTensor(
            indices=rng.integers(0, 2, (60, 80), dtype=np.uint16),
            codebook=Codebook(values=np.float32([0, 1])),
            scales=scales,
        ),
        "small": AffineTensor(k=np.arange(6, dtype=np.int32).reshape(2, 3), step=0.5),
        "affine": AffineTensor(k=rng.integers(-9, 9, (60, 80), dtype=np.int32), step=0.25),
        "vectors": GroupedTensor(
            indices=rng.integers(0, 2, 5000, dtype=np.uint8),
            shape=(100, 100),
            codebook=GroupedCodebook(values=np.float32([[[0, 1], [2, 3]]])),
        ),
        "raw": RawTensor.from_array(rng.normal(size=(50, 50))),
    }


@pytest.mark.parametrize("in_memory", [10, 1 << 22])
def test_tensors_come_back_as_they_were_and_in_order(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_spool, "_IN_MEMORY_BYTES", in_memory)
    spool = TensorSpool()
    for name, tensor in tensors().items():
        spool.add(name, tensor)
    assert list(spool) == list(tensors()) and len(spool) == 5
    for _ in range(2):
        for name, tensor in tensors().items():
            assert type(spool[name]) is type(tensor)
            assert spool[name].decode().tobytes() == tensor.decode().tobytes()
    assert spool["codebook"].codebook is spool["codebook"].codebook
    spool.add("affine", tensors()["raw"])
    assert isinstance(spool["affine"], RawTensor) and len(spool) == 5
    with pytest.raises(KeyError):
        spool["nothing"]


@pytest.mark.parametrize("method", ["kmeans", "uniform", "inq", "none"])
def test_a_conversion_holds_a_few_tensors_at_a_time(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    model = {f"w{i}": rng.normal(size=(700, 800)).astype(np.float32) for i in range(12)}
    nqconvert.convert({"w0": model["w0"]}, tmp_path / "warm.nqz", method=method, clusters=16)
    tracemalloc.start()
    try:
        nqconvert.convert(model, tmp_path / "m.nqz", method=method, clusters=16, scope="layer")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Beside four tensors of 2.2 MB: blocks of a quarter of a million 64-bit numbers, bins, a spool of 4 MiB.
    assert peak < 4 * model["w0"].nbytes + (12 << 20) < sum(array.nbytes for array in model.values())


def test_freed_memory_is_returned_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.return_freed_memory()
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    memory.return_freed_memory()
