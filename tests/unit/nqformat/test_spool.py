"""Large files: payloads that lie in a temporary file, tensors that are fetched when they are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import nqformat
from nqformat import AffineTensor, Codebook, CodebookTensor, Tensor, counting, encoder, planes, spool
from nqformat.checksums import checksums_of_pieces, page_checksums
from nqformat.counting import count_numbers, looked_up
from nqformat.dtypes import DType
from nqformat.planes import byte_plane, join_planes
from nqformat.spool import Spool, pieces_of


def tensors() -> dict[str, Tensor | np.ndarray]:
    rng = np.random.default_rng(0)
    book = Codebook(values=np.float32([-1, 0, 0.5, 2]))
    pruned = np.where(rng.random((90, 70)) < 0.1, rng.integers(0, 4, (90, 70)), 1).astype(np.uint8)
    return {
        "dense": CodebookTensor(indices=rng.integers(0, 4, (80, 60), dtype=np.uint8), codebook=book),
        "pruned": CodebookTensor(indices=pruned, codebook=book),
        "grid": AffineTensor(k=rng.integers(-9, 9, (50, 40), dtype=np.int32), step=0.5),
        "raw": rng.normal(size=(40, 30)).astype(np.float32),
        "zeros": rng.normal(size=5000) * (rng.random(5000) < 0.2),
    }


class Fetched(Mapping[str, "Tensor | np.ndarray"]):
    """Makes each tensor anew and counts how often."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def __getitem__(self, name: str) -> Tensor | np.ndarray:
        self.fetched.append(name)
        return tensors()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tensors())

    def __len__(self) -> int:
        return len(tensors())


def test_a_file_through_a_temporary_one_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = nqformat.save(tensors())
    for module, name in ((encoder, "_KEPT_SLICE_ELEMENTS"), (encoder, "_KEPT_BLOCK_ELEMENTS")):
        monkeypatch.setattr(module, name, 100)
    for module in (counting, planes):
        monkeypatch.setattr(module, "_AT_ONCE", 1000)
    monkeypatch.setattr(spool, "IN_MEMORY_UP_TO", 10)
    monkeypatch.setattr(spool, "_AT_ONCE", 777)
    lazy = Fetched()
    assert nqformat.save_file(lazy, tmp_path / "m.nqz") == len(wanted)
    assert (tmp_path / "m.nqz").read_bytes() == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["m.nqz"]
    assert set(lazy.fetched) == set(tensors())


def test_appended_bytes_come_back_in_pieces(tmp_path: Path) -> None:
    with Spool(tmp_path) as kept:
        kept.append(b"before")
        start = kept.n_bytes
        kept.append(np.arange(200, dtype=np.uint8))
        kept.append(b"")
        payload = kept.since(start, b"head")
        kept.append(b"after")
        assert len(payload) == 204
        assert b"".join(pieces_of(payload)) == b"head" + bytes(range(200))
    assert list(pieces_of(b"")) == []


@pytest.mark.parametrize("cuts", [[], [0], [1, 4095, 4096, 4097], [9000], list(range(0, 12000, 700))])
def test_checksums_do_not_depend_on_the_pieces(cuts: list[int]) -> None:
    body = np.random.default_rng(1).bytes(12288)
    bounds = [0, *cuts, len(body)]
    pieces = [body[a:b] for a, b in itertools.pairwise(bounds)]
    for content, parts in ((body, pieces), (body[:-1], [*pieces[:-1], pieces[-1][:-1]]), (b"", [])):
        assert checksums_of_pieces(parts, 12) == page_checksums(content, 12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_counts_and_look_ups_are_those_of_numpy(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_AT_ONCE", 64)
    numbers = np.random.default_rng(2).integers(0, 100, (30, 50)).astype(dtype)
    assert np.array_equal(count_numbers(numbers, 120), np.bincount(numbers.reshape(-1), minlength=120))
    table = np.arange(100, dtype=np.float32) ** 2
    found = looked_up(table, numbers.reshape(-1))
    assert found.dtype == np.float32 and np.array_equal(found, table[numbers.reshape(-1)])
    assert count_numbers(numbers[:0]).size == 0


def test_planes_of_some_elements_at_a_time_join_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "_AT_ONCE", 7)
    values = np.random.default_rng(3).normal(size=50).astype(np.float32)
    made = [byte_plane(values, DType.FLOAT32, number) for number in range(4)]
    assert join_planes(made, DType.FLOAT32).tobytes() == values.tobytes()


def test_pages_of_a_mapped_file_can_be_released(tmp_path: Path) -> None:
    nqformat.save_file(tensors(), tmp_path / "m.nqz")
    with nqformat.safe_open(tmp_path / "m.nqz") as file:
        first = file.get_tensor("raw")
        file.release_pages()
        assert file.get_tensor("raw").tobytes() == first.tobytes()
    with nqformat.from_bytes(nqformat.save(tensors())) as file:
        file.release_pages()
        assert file.get_tensor("raw").tobytes() == first.tobytes()
