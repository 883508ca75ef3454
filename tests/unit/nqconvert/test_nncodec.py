"""NNCodec beside our methods, with a stand-in for its package."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import nqconvert
from nqconvert import nncodec
from nqconvert.sources import ModelSource
from nqformat import ConversionError


def stand_in(monkeypatch: pytest.MonkeyPatch, *, writes: bool = True) -> None:
    """A codec that keeps values as float16."""
    package, module = ModuleType("nncodec"), ModuleType("nncodec.nn")
    shapes: dict[str, Any] = {}

    def encode(tensors: dict[str, np.ndarray], args: dict[str, Any]) -> None:
        shapes.update({name: array.shape for name, array in tensors.items()})
        if writes:
            content = b"".join(a.astype(np.float16).tobytes() for a in tensors.values())
            (Path(args["results"]) / "bitstream.nnc").write_bytes(content)

    def decode(content: bytearray) -> dict[str, np.ndarray]:
        flat, found, start = np.frombuffer(bytes(content), dtype=np.float16), {}, 0
        for name, shape in shapes.items():
            stop = start + int(np.prod(shape))
            found[name], start = flat[start:stop].astype(np.float32).reshape(shape), stop
        return found

    module.encode, module.decode = encode, decode  # type: ignore[attr-defined]
    package.nn = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nncodec", package)
    monkeypatch.setitem(sys.modules, "nncodec.nn", module)


def test_bytes_count_everything_and_other_dtypes_come_back_as_they_were(monkeypatch):
    stand_in(monkeypatch)
    tensors = {"w": np.full((3, 5), 1.5, np.float32), "n": np.arange(7), "b": np.float32([2.0, 3.0])}
    n_bytes, decoded = nncodec.nncodec_file(ModelSource(tensors=tensors), -32)
    assert n_bytes > 2 * 17
    assert all(np.array_equal(decoded[name], tensors[name]) for name in tensors)


def test_a_comparison_has_a_row_for_each_setting(monkeypatch):
    stand_in(monkeypatch)
    weights = {"w": np.random.default_rng(0).normal(size=(50, 60)).astype(np.float32)}
    comparison = nqconvert.compare(weights, methods=["uniform"], targets=[3])
    rows = [row for row in comparison.rows if row.method == "nncodec"]
    assert [row.setting for row in rows] == [f"qp {qp}" for qp in nncodec.NNCODEC_QPS]
    assert all(row.file_bytes is not None and row.file_bytes > 6000 for row in rows)
    assert all(row.peak_bytes is None or row.peak_bytes >= 0 for row in comparison.rows)
    assert "peak MB" in str(comparison) and "NNCodec" not in str(comparison.notes)


def test_one_line_says_that_it_is_missing_or_does_not_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "nncodec.nn", None)
    monkeypatch.setitem(sys.modules, "nncodec", None)
    weights = {"w": np.random.default_rng(0).normal(size=(50, 60)).astype(np.float32)}
    comparison = nqconvert.compare(weights, methods=["uniform"], targets=[3])
    assert [note for note in comparison.notes if "NNCodec (pip install nncodec) is not installed" in note]
    assert not [row for row in comparison.rows if row.method == "nncodec"]

    def fails(name: str) -> Any:
        raise RuntimeError("operator does not exist\nmore")

    monkeypatch.setattr(nncodec, "import_module", fails)
    assert nncodec.nncodec_missing() == "NNCodec cannot start, it is left out: operator does not exist"


def test_an_encoder_that_writes_nothing_is_an_error(monkeypatch):
    stand_in(monkeypatch, writes=False)
    with pytest.raises(ConversionError, match="no bitstream"):
        nncodec.nncodec_file(ModelSource(tensors={"w": np.ones((2, 2), np.float32)}), -38)
