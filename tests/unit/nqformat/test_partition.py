"""Line classes, alive lists and groups with an escape: chosen where they save bytes, checked when read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import nqformat
from nqformat import AffineTensor, Codebook, CodebookTensor, CorruptError, Layout
from nqformat.escape import EscapeMapping
from nqformat.grouping import GroupMapping
from nqformat.reader import NqzFile
from nqformat.streams import Codec, StreamKind
from nqformat.tensor_records import Block, PackedFields, Partition


def coded(indices: np.ndarray, n_entries: int = 9) -> CodebookTensor:
    values = np.linspace(0, 1, n_entries).astype(np.float16).astype(np.float32)
    return CodebookTensor(indices=indices.astype(np.uint8), codebook=Codebook(values=values))


def unlike_rows(n_rows: int, n_columns: int, seed: int) -> np.ndarray:
    """Rows of very different density with rows and columns that are empty."""
    rng = np.random.default_rng(seed)
    density = np.where(rng.random(n_rows) < 0.5, 0.02, 0.4) * (rng.random(n_rows) < 0.7)
    kept = rng.random((n_rows, n_columns)) < density[:, None]
    kept &= rng.random(n_columns) < 0.6
    return np.where(kept, rng.integers(1, 9, (n_rows, n_columns)), 0)


def partition_of(file: NqzFile) -> Partition:
    fields = file.directory.tensors[0].fields
    assert isinstance(fields, PackedFields)
    assert fields.partition is not None
    return fields.partition


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kernels", ["numpy", "numba"])
def test_unlike_rows_are_put_into_classes(
    transposed: bool, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    indices = unlike_rows(160, 200, 1)
    tensor = coded(np.ascontiguousarray(indices.T) if transposed else indices)
    content = nqformat.save({"w": tensor})
    with nqformat.from_bytes(content) as file:
        partition = partition_of(file)
        assert len(partition.blocks) > 1
        assert file.get_tensor("w").tobytes() == tensor.decode().tobytes()
        packed = file.get_packed("w")
        assert isinstance(packed, nqformat.PackedTensor)
        assert packed.layout is Layout.SPARSE
        assert (np.diff(packed.positions) > 0).all()
        assert file.get_slice("w", 3, 50).tobytes() == tensor.decode()[3:50].tobytes()
    assert len(content) < 0.97 * len(nqformat.save({"w": tensor}, prefer="speed"))


def test_structured_pruning_costs_the_dense_part_only() -> None:
    rng = np.random.default_rng(2)
    inner = rng.integers(1, 9, size=(64, 9 * 40)).astype(np.uint8)
    whole = np.zeros((128, 9 * 64), dtype=np.uint8)
    rows = np.sort(rng.permutation(128)[:64])
    columns = np.sort(rng.permutation(9 * 64)[: 9 * 40])
    whole[np.ix_(rows, columns)] = inner
    content = nqformat.save({"w": coded(whole.reshape(128, 64, 3, 3))})
    assert len(content) < len(nqformat.save({"w": coded(inner)})) + 130
    assert nqformat.load(content)["w"].tobytes() == coded(whole).decode().tobytes()


@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_affine_tensors_in_classes_survive(offset: float) -> None:
    rng = np.random.default_rng(4)
    k = np.where(rng.random((200, 150)) < 0.5, 0, rng.integers(-3, 4, (200, 150)))
    k[rng.random(200) < 0.5] *= 40
    k[::7] = 0
    tensor = AffineTensor(k=k.astype(np.int32), step=0.25, offset=offset)
    assert nqformat.load(nqformat.save({"w": tensor}))["w"].tobytes() == tensor.decode().tobytes()


def test_declared_counts_are_checked() -> None:
    with nqformat.from_bytes(nqformat.save({"w": coded(unlike_rows(160, 200, 1))})) as file:
        record = file.directory.tensors[0]
        fields, partition = record.fields, partition_of(file)
        assert isinstance(fields, PackedFields)
        blocks = list(partition.blocks)
        moved = [
            replace(blocks[0], n_lines=blocks[0].n_lines + 1),
            replace(blocks[1], n_lines=blocks[1].n_lines - 1),
        ]
        wrong = [
            replace(partition, blocks=tuple(moved + blocks[2:])),
            replace(partition, blocks=(*blocks[:-1], Block(n_lines=1, n_stored=0))),
        ]
        if partition.alive_stream is not None:
            wrong.append(replace(partition, n_alive=partition.n_alive - 1))
        for broken in wrong:
            file.directory.tensors[0] = replace(record, fields=replace(fields, partition=broken))
            with pytest.raises(CorruptError):
                file.get_tensor("w")


@pytest.mark.parametrize("length", [0, 1, 2, 7, 70_000])
def test_escaped_groups_give_their_numbers_back(length: int) -> None:
    rng = np.random.default_rng(length)
    mapping = EscapeMapping(2, 15, 4)
    numbers = np.minimum(rng.geometric(0.2, length) - 1, mapping.max_value)
    symbols, extra = mapping.symbols(numbers), mapping.extra(numbers)
    digits = mapping.digits.split(symbols, length)
    assert digits is not None
    restored = digits.astype(np.int64)
    restored[restored == 15] += extra.astype(np.int64)
    assert np.array_equal(restored, numbers)


def test_the_example_of_escaped_groups() -> None:
    mapping = EscapeMapping(2, 15, 4)
    numbers = np.array([3, 17, 15, 0])
    assert mapping.symbols(numbers).tolist() == [243, 15]
    assert mapping.extra(numbers).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("group", "window", "bits"), [(0, 1, 1), (2, 16, 1), (2, 0, 1), (9, 1, 1), (2, 15, 25)]
)
def test_impossible_escapes_are_refused(group: int, window: int, bits: int) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        EscapeMapping(group, window, bits)


def test_alphabets_of_17_to_32_are_coded_in_pairs() -> None:
    rng = np.random.default_rng(5)
    steps = np.clip(np.rint(np.cumsum(rng.normal(size=(100, 300)), axis=1) % 12), 0, 24)
    rare = rng.random(steps.shape) < 0.02
    steps[rare] = rng.integers(12, 25, np.count_nonzero(rare))
    values = np.linspace(-1, 1, 25).astype(np.float16).astype(np.float32)
    tensor = CodebookTensor(indices=steps.astype(np.uint8), codebook=Codebook(values=values))
    content = nqformat.save({"w": tensor})
    with nqformat.from_bytes(content) as file:
        assert any(isinstance(s.mapping, EscapeMapping) for s in file.directory.streams)
        assert file.get_tensor("w").tobytes() == tensor.decode().tobytes()


@pytest.mark.parametrize("width", [3, 5, 6])
def test_groups_that_do_not_divide_a_chunk_start_anew_in_each(width: int) -> None:
    numbers = np.random.default_rng(6).permutation(np.repeat(np.arange(width), 60_000))
    numbers = np.sort(numbers).astype(np.uint8)
    numbers[65_536 - 3 : 65_536 + 3] = [0, width - 1, 0, width - 1, 0, width - 1]
    values = np.linspace(1, 2, width).astype(np.float16).astype(np.float32)
    tensor = CodebookTensor(indices=numbers, codebook=Codebook(values=values))
    for prefer in ("size", "speed"):
        content = nqformat.save({"w": tensor}, prefer=prefer)
        assert nqformat.load(content)["w"].tobytes() == tensor.decode().tobytes()


def test_speed_means_prefix_codes_without_classes() -> None:
    tensors = {"w": coded(unlike_rows(160, 200, 1)), "v": np.random.default_rng(0).normal(size=5000)}
    with nqformat.from_bytes(nqformat.save(tensors, prefer="speed")) as file:
        streams = file.directory.streams
        assert all(s.codec in (Codec.STORED, Codec.HUFFMAN) for s in streams)
        assert all(s.kind is not StreamKind.CLASSES and s.four_streams for s in streams)
        assert not any(isinstance(s.mapping, EscapeMapping) for s in streams)
    with pytest.raises(ValueError, match="prefer"):
        nqformat.save({}, prefer="beauty")


def test_tensors_of_unlike_width_can_share_a_group_mapping() -> None:
    assert GroupMapping(2, 16).join(np.array([14, 3, 2])).tolist() == [62, 2]
