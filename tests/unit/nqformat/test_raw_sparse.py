"""Pruned tensors that keep their own bits: gaps and the planes of the nonzeros (spec 7.2)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import nqformat
from nqformat import CorruptError, DType, Layout, RawTensor
from nqformat.errors import LimitExceededError
from nqformat.tensor_records import RawFields


def pruned(shape: tuple[int, ...], density: float, dtype: str = "<f4", seed: int = 0) -> np.ndarray:
    """Normal numbers of which a share is kept."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < density, 40 * rng.normal(size=shape), 0).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<i4", "<i8"])
@pytest.mark.parametrize("prefer", ["size", "speed"])
def test_pruned_arrays_shrink_and_come_back(dtype: str, prefer: str) -> None:
    array = pruned((60, 7, 11), 0.1, dtype)
    content = nqformat.save({"w": array, "other": pruned((500,), 0.2, dtype, 1)}, prefer=prefer)
    with nqformat.from_bytes(content) as file:
        info = file.info("w")
        assert info.layout is Layout.RAW_SPARSE
        assert info.n_stored == np.count_nonzero(array)
        assert file.get_tensor("w").tobytes() == array.tobytes()
        assert file.get_slice("w", 3, 9).tobytes() == array[3:9].tobytes()
    assert len(content) < 0.3 * array.nbytes


def test_negative_zero_nan_and_bfloat16_keep_their_bits() -> None:
    array = pruned((40, 50), 0.05)
    array[3, 4], array[5, 6] = -0.0, np.nan
    bits = np.where(np.arange(900) % 9 == 0, 0x8000 + np.arange(900), 0).astype(np.uint16)
    content = nqformat.save({"w": array, "b": RawTensor(bits=bits, dtype=DType.BFLOAT16)})
    loaded = nqformat.load(content, bfloat16="uint16")
    assert loaded["w"].tobytes() == array.tobytes()
    assert loaded["b"].tobytes() == bits.tobytes()


def test_rare_true_flags_come_back() -> None:
    flags = np.arange(5000) % 400 == 9
    content = nqformat.save({"flags": flags})
    assert nqformat.load(content)["flags"].tolist() == flags.tolist()
    assert len(content) < 200


def test_arrays_without_many_zeros_stay_plain() -> None:
    full = np.random.default_rng(2).normal(size=(30, 30)).astype(np.float32)
    full[0, 0] = 0
    with nqformat.from_bytes(nqformat.save({"w": full, "zeros": np.zeros((5, 5))})) as file:
        assert file.info("w").layout is Layout.RAW
        assert file.info("zeros").layout is Layout.CONSTANT


def test_more_chunks_than_one_join() -> None:
    array = pruned((700, 600), 0.3, "<f2", 5)
    assert nqformat.load(nqformat.save({"w": array}))["w"].tobytes() == array.tobytes()


def test_the_limit_counts_the_whole_tensor() -> None:
    array = pruned((300, 300), 0.01)
    with pytest.raises(LimitExceededError):
        nqformat.load(nqformat.save({"w": array}), limits=nqformat.Limits(materialised_bytes=300_000))


@pytest.mark.parametrize("shape", [(20, 90), (2, 3)])
def test_a_shape_that_the_gaps_leave_is_refused(shape: tuple[int, ...]) -> None:
    array = pruned((40, 50), 0.2)
    with nqformat.from_bytes(nqformat.save({"w": array}, edge=True)) as file:
        record = file.directory.tensors[0]
        assert isinstance(record.fields, RawFields)
        assert record.fields.n_stored == np.count_nonzero(array)
        with pytest.raises(CorruptError):
            file.decoder.decode(replace(record, shape=shape))
