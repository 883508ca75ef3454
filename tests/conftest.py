"""Shared fixtures: small files that hold every layout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import nqformat
from nqformat import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    DType,
    GroupedCodebook,
    GroupedTensor,
    HashedTensor,
    Layout,
    RawTensor,
    Scales,
    ViewSource,
    ViewTensor,
)
from nqformat.layout_choice import Plan, Subject

settings.register_profile(
    "suite", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def sparse_indices(shape: tuple[int, ...], density: float, n_entries: int, seed: int) -> np.ndarray:
    """Indices into a codebook whose entry 0 is zero, skewed towards small indices."""
    rng = np.random.default_rng(seed)
    kept = rng.random(shape) < density
    levels = 1 + np.minimum(rng.geometric(0.4, size=shape) - 1, n_entries - 2)
    return np.where(kept, levels, 0).astype(np.uint8)


def codebook(n_entries: int, seed: int = 0, stored_as: DType = DType.FLOAT16) -> Codebook:
    """Codebook with entry 0 equal to zero."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=n_entries).astype(np.float16).astype(np.float32)
    values[0] = 0.0
    return Codebook(values=values, stored_as=stored_as)


@pytest.fixture(scope="session")
def every_layout() -> dict[str, object]:
    """Tensors that together use every layout, dtype family and option of the writer."""
    rng = np.random.default_rng(7)
    book = codebook(9)
    return {
        "sparse": CodebookTensor(indices=sparse_indices((24, 31), 0.08, 9, 1), codebook=book),
        "sparse_sibling": CodebookTensor(indices=sparse_indices((11, 13), 0.1, 9, 2), codebook=book),
        "mask": CodebookTensor(indices=sparse_indices((16, 40), 0.45, 17, 3), codebook=codebook(17, 5)),
        "dense": CodebookTensor(
            indices=rng.integers(0, 4, size=(12, 9)).astype(np.uint8), codebook=codebook(4, 1, DType.FLOAT32)
        ),
        "affine": AffineTensor(k=rng.integers(-6, 7, size=(8, 10)).astype(np.int32), step=0.125, offset=0.5),
        "affine_int8": AffineTensor(
            k=rng.integers(-20, 20, size=50).astype(np.int32), step=1.0, dtype=DType.INT8
        ),
        "half": CodebookTensor(
            indices=rng.integers(0, 5, size=(6, 6)).astype(np.uint8),
            codebook=codebook(5, 2),
            dtype=DType.FLOAT16,
        ),
        "scaled": AffineTensor(
            k=rng.integers(-3, 4, size=(14, 9)).astype(np.int32),
            step=1.0,
            scales=Scales.along_axis(rng.uniform(0.5, 2, size=14).astype(np.float32), (14, 9)),
        ),
        "grouped": GroupedTensor(
            indices=rng.integers(0, 5, size=60).astype(np.uint8),
            shape=(10, 12),
            codebook=GroupedCodebook(values=rng.normal(size=(3, 5, 2)).astype(np.float32)),
            span=20,
        ),
        "hashed": HashedTensor(source="raw", shape=(6, 5), seed=99),
        "raw": rng.normal(size=37).astype(np.float32),
        "raw_int": np.arange(-5, 5, dtype=np.int64),
        "brain": RawTensor(bits=rng.integers(0, 1 << 16, size=9).astype(np.uint16), dtype=DType.BFLOAT16),
        "flags": np.array([True, False, True]),
        "constant": np.full((3, 4), 2.5, dtype=np.float64),
        "scalar": np.float32(3.0),
        "empty": np.zeros((0, 5), dtype=np.float32),
        "view": ViewTensor(
            sources=(ViewSource(name="dense", start=2, stop=8),), permutation=(1, 0), shape=(9, 6)
        ),
    }


@pytest.fixture(scope="session")
def small_file(every_layout: dict[str, object]) -> bytes:
    """A file of every layout, a graph and metadata: about two kilobytes."""
    return nqformat.save(
        every_layout, graph=b"graph bytes, not parsed by nqformat", metadata={"method": "test"}
    )


@pytest.fixture
def forced_plan(monkeypatch: pytest.MonkeyPatch) -> Callable[[Layout, bool], None]:
    """Return a function that makes the writer store every quantized tensor in one layout and scan."""

    def force(layout: Layout, column_scan: bool) -> None:
        def only(subject: Subject, **_: object) -> list[Plan]:
            return [subject.costed(Plan(layout=layout, column_scan=column_scan))]

        monkeypatch.setattr("nqformat.quantized_plans.make_plans", only)

    return force
