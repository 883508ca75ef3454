"""Small files that declare huge things are refused before anything of that size is allocated."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import nqformat
from fuzz.container import Container, Record, varint
from fuzz.huge import huge_files, many_views, of_single_symbols, views_of_everything
from nqformat import Layout, Limits
from nqformat.deflate import deflate
from nqformat.directory import RecordKind
from nqformat.errors import FormatError
from nqformat.tensor_decoder import TensorDecoder
from nqformat.tensor_records import (
    TensorRecord,
)

HUGE = huge_files()
MOST_BYTES = 64 << 20
LIMITS = Limits(materialised_bytes=1 << 30)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes that Python and NumPy held at a time during the call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused_bytes(call: Callable[[], Any]) -> int:
    """Most bytes held during a call that is refused."""

    def refused() -> None:
        with pytest.raises((FormatError, nqformat.UnsupportedFeatureError)):
            call()

    return peak_bytes(refused)


def read(content: bytes) -> None:
    with nqformat.from_bytes(content, limits=LIMITS, threads=1) as file:
        file.metadata()
        file.graph()
        for name in file:
            for way in (
                file.get_tensor,
                file.get_packed,
                lambda name: file.get_slice(name, 0, min(file.info(name).shape[0], 1 << 29)),
            ):
                with pytest.raises((FormatError, nqformat.UnsupportedFeatureError)):
                    way(name)
            file.get_tensor(name)


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_huge_declared_sizes_are_refused_without_allocating(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    assert len(HUGE[name]) < 100_000

    assert refused_bytes(lambda: read(HUGE[name])) < MOST_BYTES


def test_there_are_enough_of_them() -> None:
    assert len(HUGE) >= 30


def test_the_sources_of_a_view_count_towards_the_limit() -> None:
    content = views_of_everything()
    limits = Limits(materialised_bytes=1 << 25)
    with nqformat.from_bytes(content, limits=limits) as file:
        assert refused_bytes(lambda: file.get_tensor("v")) < 1 << 26


def test_many_views_of_one_large_tensor_decode_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    content = many_views(3000)
    decoded: list[str] = []
    decode = TensorDecoder.decode

    def counted(self: TensorDecoder, record: TensorRecord, *sources: Any) -> np.ndarray:
        decoded.append(record.name)
        return decode(self, record, *sources)

    monkeypatch.setattr(TensorDecoder, "decode", counted)
    loaded = nqformat.load(content)
    assert len(loaded) == 3001 and loaded["v2999"] == 1
    assert decoded == list(loaded)
    loaded["v1"][0] = 2
    assert loaded["t"][1] == 1


def test_many_tensors_are_read_in_linear_memory() -> None:
    n_tensors = 5_000
    content = nqformat.save({f"{i}": np.float32(i) for i in range(n_tensors)})
    assert peak_bytes(lambda: nqformat.from_bytes(content).close()) < 3000 * n_tensors
    with pytest.raises(nqformat.LimitExceededError):
        nqformat.from_bytes(content, limits=Limits(n_tensors=n_tensors - 1))


def test_deep_json_and_long_numbers_are_refused_with_little_memory() -> None:
    for text in (b'{"a":' + b"[" * 500_000, b'{"a":' * 100_000, b'{"a":' + b"9" * 100_000 + b"}"):
        stored = deflate(text)
        body = b"\1" + varint(len(text))
        content = Container([Record(RecordKind.METADATA, body, stored, critical=False)]).to_bytes()
        with nqformat.from_bytes(content) as file:
            assert refused_bytes(file.metadata) < MOST_BYTES


def test_streams_of_no_bits_take_no_more_than_their_elements() -> None:
    content = of_single_symbols((1 << 20,), Layout.DENSE, 1 << 20)
    with nqformat.from_bytes(content, threads=1) as file, pytest.raises(FormatError):
        file.get_tensor("t")  # 3,000 chunk entries for one chunk
