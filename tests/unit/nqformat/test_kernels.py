"""Compiled kernels give the reference's bits, stay inside their memory, and refuse damaged chunks."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nqformat
from nqformat import AffineTensor, Codebook, CodebookTensor, DType, RawTensor, kernels
from nqformat.chunks import substream_bounds
from nqformat.decoding import decode_dense, decode_sparse
from nqformat.errors import FormatError
from nqformat.hybrid import HybridMapping
from nqformat.kernels.objects import DECODER, ENCODER, kernel_library
from nqformat.prefix_code import PrefixCode
from nqformat.streams import Codec
from nqformat.tans import TansCode
from nqformat.workers import Workers

ROOT = Path(__file__).parents[3]
needs_kernels = pytest.mark.skipif(
    kernel_library(DECODER, compile_missing=True) is None, reason="no compiled kernels on this machine"
)
PAGE = mmap.PAGESIZE


def random_code(rng: np.random.Generator, n_used: int, skew: float, limit: int = 13) -> PrefixCode:
    counts = np.zeros(256, dtype=np.int64)
    counts[rng.choice(256, n_used, replace=False)] = 1 + (1e4 * rng.random(n_used) ** skew).astype(np.int64)
    return PrefixCode.from_counts(counts, limit)


def coded(code: PrefixCode, symbols: np.ndarray, n_streams: int) -> tuple[bytes, list[int], list[int]]:
    codes, lengths = code.codewords
    bounds = substream_bounds(symbols.size, n_streams)
    parts = kernels.pack_codes(symbols, bounds, codes, lengths)
    return b"".join(parts), [0, *np.cumsum([len(p) for p in parts]).tolist()], bounds


def guarded(content: bytes) -> tuple[np.ndarray, mmap.mmap]:
    """A read-only copy that ends where an unreadable page begins, and what keeps it alive."""
    n_pages = -(-len(content) // PAGE) or 1
    area = mmap.mmap(-1, (n_pages + 1) * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    start = n_pages * PAGE - len(content)
    area[start : n_pages * PAGE] = content
    assert libc.mprotect(ctypes.c_void_p(address + n_pages * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    return np.frombuffer(area, dtype=np.uint8, count=len(content), offset=start), area


def guarded_result(n: int, dtype: np.dtype[Any]) -> tuple[np.ndarray, mmap.mmap]:
    """An array of n elements that ends where a forbidden page begins, and what keeps it alive."""
    found, area = guarded(b"\xa5" * (n * dtype.itemsize))
    return found.view(dtype), area


@needs_kernels
@pytest.mark.parametrize("past_cache_from", [0, 1 << 40])
def test_damaged_chunks_write_only_into_their_result(
    past_cache_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    monkeypatch.setattr("nqformat.decoding._PAST_CACHE_FROM_BYTES", past_cache_from)
    rng = np.random.default_rng(14)
    values = np.append(0.0, rng.normal(size=20)).astype(np.float16).astype(np.float32)
    dense = np.minimum(rng.geometric(0.4, size=(129, 301)) - 1, 20).astype(np.uint8)
    tensors = {
        f"{name} {dtype.label}": CodebookTensor(
            indices=numbers[:, :width], codebook=Codebook(values=values), dtype=dtype
        )
        for name, numbers in (("dense", dense), ("sparse", np.where(rng.random(dense.shape) < 0.1, dense, 0)))
        for dtype, width in ((DType.FLOAT32, 301), (DType.FLOAT16, 299))
    }
    content = nqformat.save(tensors, prefer="speed")
    refused = 0
    for _ in range(25):
        mutant = bytearray(content)
        for _ in range(int(rng.integers(1, 12))):
            mutant[int(rng.integers(len(content) // 4, len(mutant)))] ^= int(rng.integers(1, 256))
        source, source_area = guarded(bytes(mutant))
        with nqformat.from_bytes(memoryview(source), verify=False, threads=1) as file:
            for name, tensor in tensors.items():
                record = file._record(name)
                part = file.decoder.slices.of(record, "values")
                table, values_of = file.decoder.value_rule(record, record.fields, part.record)
                out, area = guarded_result(tensor.indices.size, record.dtype.storage_dtype)
                rule = {"table": table, "values_of": values_of, "out": out, "workers": Workers(1)}
                for columns in (None, tensor.indices.shape):
                    try:
                        if name.startswith("dense"):
                            decode_dense(part, base=0, **rule)
                        else:
                            gaps = file.decoder.slices.of(record, "positions")
                            decode_sparse(part, gaps, columns=columns, **rule)
                    except FormatError:
                        refused += 1
                assert not any(area[: len(area) - PAGE - out.nbytes])
                del out, rule
        del source, source_area, part
    assert refused > 10


@needs_kernels
@pytest.mark.parametrize("n_used", [2, 3, 16, 40, 256])
@pytest.mark.parametrize("n", [1, 7, 63, 4096, 4099, 70_001])
def test_symbols_come_back_on_both_paths(n_used: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n_used * n)
    code = random_code(rng, n_used, 6.0)
    used = np.flatnonzero(code.lengths)
    symbols = rng.choice(used, n).astype(np.uint8)
    for n_streams in (1, 4):
        decoded = {}
        for path in ("numba", "numpy"):
            monkeypatch.setenv("NQFORMAT_KERNELS", path)
            content, byte_bounds, symbol_bounds = coded(code, symbols, n_streams)
            buffer = np.frombuffer(content, dtype=np.uint8)
            decoded[path] = kernels.decode_prefix_streams(buffer, byte_bounds, code, symbol_bounds)
        assert np.array_equal(decoded["numba"], symbols)
        assert np.array_equal(decoded["numpy"], symbols)


@needs_kernels
def test_damaged_chunks_are_judged_alike_and_nothing_beyond_them_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(8)
    refused = 0
    for round_number in range(300):
        code = random_code(rng, int(rng.integers(2, 256)), float(rng.choice([1.0, 8.0])))
        used = np.flatnonzero(code.lengths)
        n = int(rng.integers(1, 9000))
        content, byte_bounds, symbol_bounds = coded(
            code, rng.choice(used, n).astype(np.uint8), 4 if n > 4096 else 1
        )
        damaged = bytearray(content)
        for _ in range(int(rng.integers(0, 4))):
            damaged[int(rng.integers(len(damaged)))] ^= int(rng.integers(1, 256))
        if round_number % 3 == 0:
            moved = sorted(int(b) for b in rng.integers(0, len(content) + 1, len(byte_bounds) - 2))
            byte_bounds = [0, *moved, len(content)]
        buffer, area = guarded(bytes(damaged))
        outcomes = []
        for path in ("numba", "numpy"):
            monkeypatch.setenv("NQFORMAT_KERNELS", path)
            outcomes.append(kernels.decode_prefix_streams(buffer, byte_bounds, code, symbol_bounds))
        assert (outcomes[0] is None) == (outcomes[1] is None)
        if outcomes[0] is None or outcomes[1] is None:
            refused += 1
        else:
            assert np.array_equal(outcomes[0], outcomes[1])
        del buffer, area
    assert refused > 50


@needs_kernels
def test_damaged_tans_chunks_are_judged_alike_and_nothing_beyond_them_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(9)
    refused = 0
    for round_number in range(120):
        width, n = int(rng.integers(2, 256)), int(rng.integers(1, 6000))
        symbols = np.minimum(rng.geometric(rng.uniform(0.05, 0.95), n) - 1, width - 1).astype(np.uint8)
        counts = np.bincount(np.append(symbols, [0, 1]), minlength=256)
        code = TansCode.from_counts(counts, 2, int(rng.integers(8, 13)))
        symbol_bounds = substream_bounds(n, int(rng.choice([1, 4])))
        parts = kernels.encode_tans_streams(symbols, symbol_bounds, code.encode_tables)
        damaged = bytearray(b"".join(parts))
        byte_bounds = [0, *np.cumsum([len(p) for p in parts]).tolist()]
        for _ in range(int(rng.integers(0, 3))):
            damaged[int(rng.integers(len(damaged)))] ^= int(rng.integers(1, 256))
        if round_number % 3 == 0:
            moved = sorted(int(b) for b in rng.integers(0, len(damaged) + 1, len(byte_bounds) - 2))
            byte_bounds = [0, *moved, len(damaged)]
        buffer, area = guarded(bytes(damaged))
        outcomes = []
        for path in ("numba", "numpy"):
            monkeypatch.setenv("NQFORMAT_KERNELS", path)
            outcomes.append(
                kernels.decode_tans_streams(
                    buffer, byte_bounds, code.decode_table, code.table_log2, symbol_bounds
                )
            )
        assert (outcomes[0] is None) == (outcomes[1] is None)
        if outcomes[0] is None or outcomes[1] is None:
            refused += 1
        else:
            assert np.array_equal(outcomes[0], outcomes[1])
        del buffer, area
    assert refused > 20


@needs_kernels
def test_tensors_under_tans_codes_decode_alike_on_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nqformat.code_cost._TANS_GAIN", 2.0)
    monkeypatch.setattr("nqformat.code_cost._TANS_GAIN_LARGE", 2.0)
    rng = np.random.default_rng(5)
    values = np.append(0.0, rng.normal(size=39)).astype(np.float16).astype(np.float32)
    tensors = {}
    for levels in (2, 16, 40):
        indices = np.minimum(rng.geometric(0.3, size=(401, 303)), levels) - 1
        kept = np.where(rng.random((401, 303)) < 0.1, indices, 0)
        for name, numbers in (("dense", indices), ("sparse", kept)):
            tensors[f"{name} {levels}"] = CodebookTensor(
                indices=numbers.astype(np.uint8), codebook=Codebook(values=values[:levels])
            )
    contents = {}
    for path in ("numba", "numpy"):
        monkeypatch.setenv("NQFORMAT_KERNELS", path)
        contents[path] = nqformat.save(tensors)
    assert contents["numba"] == contents["numpy"]
    for path in ("numba", "numpy"):
        monkeypatch.setenv("NQFORMAT_KERNELS", path)
        with nqformat.from_bytes(contents[path], threads=2) as file:
            part = file.decoder.slices.slice_of(file._record("dense 16"), "values")
            assert file.decoder.slices.coded("dense 16", part).record.codec is Codec.TANS
            for name, tensor in tensors.items():
                assert file.get_tensor(name).tobytes() == tensor.decode().tobytes(), (path, name)


@needs_kernels
def test_hybrid_numbers_are_judged_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for split, mantissa in ((0, 0), (4, 1), (7, 3)):
        mapping = HybridMapping(split, mantissa)
        numbers = rng.integers(0, min(mapping.max_value, 1 << 40), size=500, dtype=np.int64) >> rng.integers(
            0, 40, size=500
        )
        symbols, low, widths = mapping.split(numbers)
        extra = np.frombuffer(kernels.pack_bits(low, widths), dtype=np.uint8)
        for damage in range(4):
            changed, bits = symbols.copy(), extra.copy()
            if damage == 1:
                changed[7] = 255
            elif damage == 2 and bits.size:
                bits = bits[:-1]
            elif damage == 3:
                bits = np.append(bits, np.uint8(0))
            found = []
            for path in ("numba", "numpy"):
                monkeypatch.setenv("NQFORMAT_KERNELS", path)
                found.append(kernels.join_hybrid(changed, bits, mapping.symbol_bases, mapping.symbol_widths))
            assert (found[0] is None) == (found[1] is None)
            if found[0] is not None:
                assert np.array_equal(found[0], found[1])
            if damage == 0:
                assert np.array_equal(found[0], numbers)


@needs_kernels
@pytest.mark.parametrize("n", [0, 5, 63, 4099, 70_001])
def test_codewords_are_packed_alike_alone_and_in_pairs(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n)
    for n_used in (2, 16, 60, 256):
        code = random_code(rng, n_used, 8.0)
        symbols = rng.choice(np.flatnonzero(code.lengths), n).astype(np.uint8)
        codes, lengths = code.codewords
        uneven = [0, n // 5, n // 2, n // 2, n]
        for bounds in (substream_bounds(n, 1), substream_bounds(n, 4), uneven):
            packed = []
            for path in ("numba", "numpy"):
                monkeypatch.setenv("NQFORMAT_KERNELS", path)
                packed.append(kernels.pack_codes(symbols, bounds, codes, lengths))
            assert packed[0] == packed[1]


@needs_kernels
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
def test_small_kernels_agree_with_the_reference(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(n)
    symbols = rng.integers(0, 256, n).astype(np.uint8)
    widths = rng.integers(0, 57, n).astype(np.uint8)
    values = rng.integers(0, 1 << 62, n).astype(np.uint64) & ((np.uint64(1) << widths) - np.uint64(1))
    outcomes = []
    for path in ("numba", "numpy"):
        monkeypatch.setenv("NQFORMAT_KERNELS", path)
        joined = []
        for size, rotate in ((2, True), (2, False), (4, True), (4, False), (8, True), (8, False)):
            planes = [
                rng.permutation(symbols) if path == "never" else np.roll(symbols, i) for i in range(size)
            ]
            out = np.empty(n, dtype=f"<u{size}")
            kernels.join_planes(planes, out, rotate=rotate)
            joined.append(out.tobytes())
        outcomes.append((kernels.count_symbols(symbols).tolist(), kernels.pack_bits(values, widths), joined))
    assert outcomes[0] == outcomes[1]


def many_tensors() -> dict[str, object]:
    """Large tensors of every layout, value rule and element size."""
    rng = np.random.default_rng(4)
    tensors: dict[str, object] = {}
    for levels in (2, 3, 4, 6, 15, 16, 40, 256, 700):
        for dtype in (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64):
            book = Codebook(values=rng.normal(size=levels).astype(np.float16).astype(np.float32))
            shares = rng.dirichlet(np.full(levels, 0.5))
            indices = rng.choice(levels, size=(250, 301), p=shares).astype(np.uint16)
            tensors[f"dense {levels} {dtype.label}"] = CodebookTensor(
                indices=indices, codebook=book, dtype=dtype
            )
            values = book.values.copy()
            values[0] = 0.0
            for density in (0.02, 0.4):
                kept = np.where(rng.random((701, 703)) < density, rng.integers(1, levels, (701, 703)), 0)
                tensors[f"sparse {levels} {density} {dtype.label}"] = CodebookTensor(
                    indices=kept.astype(np.uint16), codebook=Codebook(values=values), dtype=dtype
                )
    for dtype in (DType.INT8, DType.INT32, DType.FLOAT32):
        k = rng.binomial(200, 0.5, size=(400, 300)).astype(np.int32) - 100
        tensors[f"affine {dtype.label}"] = AffineTensor(k=k, step=1.0, dtype=dtype)
        sparse = np.where(rng.random(k.shape) < 0.05, k, 0).astype(np.int32)
        tensors[f"affine sparse {dtype.label}"] = AffineTensor(k=sparse, step=1.0, dtype=dtype)
    weights = (rng.normal(size=200_000) * 0.02).astype(np.float32)
    tensors["raw float32"] = RawTensor.from_array(weights)
    tensors["raw float16"] = RawTensor.from_array(weights.astype(np.float16))
    tensors["raw float64"] = RawTensor.from_array(weights.astype(np.float64))
    tensors["raw bfloat16"] = RawTensor(
        bits=(weights.view(np.uint32) >> 16).astype(np.uint16), dtype=DType.BFLOAT16
    )
    return tensors


@needs_kernels
def test_large_tensors_of_every_kind_decode_alike_on_both_paths_and_with_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = many_tensors()
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    content = nqformat.save(tensors, prefer="speed")
    for threads in (1, 2, 5):
        decoded = nqformat.load(content, bfloat16="uint16", threads=threads)
        for name, tensor in tensors.items():
            assert decoded[name].tobytes() == tensor.decode().tobytes(), (name, threads)
    some = [name for name in tensors if "float64" not in name and "256" not in name]
    monkeypatch.setenv("NQFORMAT_KERNELS", "numpy")
    with nqformat.from_bytes(content, bfloat16="uint16") as file:
        for name in some[::5]:
            assert file.get_tensor(name).tobytes() == tensors[name].decode().tobytes(), name


@needs_kernels
def test_results_written_past_the_cache_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    monkeypatch.setattr("nqformat.decoding._PAST_CACHE_FROM_BYTES", 0)
    rng = np.random.default_rng(12)
    for levels in (3, 16, 40):
        for dtype in (DType.FLOAT32, DType.FLOAT16, DType.FLOAT64):
            values = np.append(0.0, rng.normal(size=levels - 1)).astype(np.float16).astype(np.float32)
            dense = rng.binomial(levels - 1, 0.4, size=(331, 401)).astype(np.uint8)
            rare = np.where(rng.random((331, 401)) < 0.05, dense, 0).astype(np.uint8)
            rare[7:210] = 0
            tensors = {
                name: CodebookTensor(indices=numbers, codebook=Codebook(values=values), dtype=dtype)
                for name, numbers in (("dense", dense), ("sparse", rare), ("columns", rare.T.copy()))
            }
            decoded = nqformat.load(nqformat.save(tensors, prefer="speed"), threads=2)
            for name, tensor in tensors.items():
                assert decoded[name].tobytes() == tensor.decode().tobytes(), (levels, dtype, name)


@needs_kernels
def test_flipped_bits_of_large_chunks_raise_and_do_not_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    tensors = {
        name: t
        for name, t in many_tensors().items()
        if name in ("dense 6 float32", "sparse 16 0.02 float16", "sparse 40 0.4 float32", "raw bfloat16")
    }
    content = nqformat.save(tensors)
    rng = np.random.default_rng(6)
    refused = 0
    for _ in range(150):
        mutant = bytearray(content)
        for _ in range(3):
            mutant[int(rng.integers(2000, len(mutant)))] ^= 1 << int(rng.integers(8))
        with nqformat.from_bytes(bytes(mutant), verify=False, bfloat16="uint16", threads=2) as file:
            for name in tensors:
                try:
                    file.get_tensor(name)
                except FormatError:
                    refused += 1
    assert refused > 20


@pytest.mark.parametrize("threads", [1, 2])
def test_damage_in_a_mapped_file_is_reported_as_such(tmp_path: Path, threads: int) -> None:
    rng = np.random.default_rng(1)
    book = Codebook(values=rng.normal(size=16).astype(np.float32))
    indices = rng.binomial(15, 0.5, size=300_000).astype(np.uint8)
    content = bytearray(nqformat.save({"w": CodebookTensor(indices=indices, codebook=book)}))
    middle = len(content) // 2
    content[middle : middle + 400] = rng.bytes(400)
    path = tmp_path / "w.nqz"
    path.write_bytes(content)
    with (
        pytest.raises(FormatError),
        nqformat.safe_open(path, verify=False, threads=threads) as file,
    ):
        file.get_tensor("w")


def test_threads_must_be_positive(small_file: bytes) -> None:
    with pytest.raises(ValueError, match="threads"):
        nqformat.from_bytes(small_file, threads=0)


def first_tensor(path: Path, **environment: str) -> list[str]:
    """Decode a tensor in a fresh process; says whether Numba was imported and what the sum is."""
    code = (
        "import sys, nqformat\n"
        f"total = nqformat.load_file({str(path)!r})['w'].sum()\n"
        "print('numba' in sys.modules, float(total))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NQFORMAT_KERNELS": "numba",
            "NUMBA_DISABLE_JIT": "0",
            **environment,
        },
    )
    return done.stdout.split()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("weights") / "w.nqz"
    book = Codebook(values=rng.normal(size=16).astype(np.float32))
    indices = rng.binomial(15, 0.5, size=70_000).astype(np.uint8)
    nqformat.save_file({"w": CodebookTensor(indices=indices, codebook=book)}, path, prefer="speed")
    return path


@needs_kernels
def test_cached_kernels_load_without_numba(weights_file: Path, tmp_path: Path) -> None:
    first = first_tensor(weights_file, NQFORMAT_CACHE_DIR=str(tmp_path))
    assert first[0] == "True"
    assert len(list(tmp_path.iterdir())) == 1
    assert first_tensor(weights_file, NQFORMAT_CACHE_DIR=str(tmp_path)) == ["False", first[1]]


@pytest.mark.skipif(sys.byteorder != "little", reason="kernels are for little-endian machines")
def test_many_tensors_are_worth_compiling_as_one_large_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        kernels, "kernel_library", lambda part, compile_missing: asked.append(compile_missing)
    )
    monkeypatch.setattr(kernels, "_asked_symbols", {})
    monkeypatch.delenv("NQFORMAT_KERNELS", raising=False)
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    for _ in range(4):
        kernels.native(6_000_000, ENCODER)
    kernels.native(6_000_000, DECODER)
    kernels.native(20_000_000, DECODER)
    assert asked == [False, False, False, True, False, True]


def test_without_compilation_numpy_decodes(weights_file: Path, tmp_path: Path) -> None:
    found = first_tensor(weights_file, NUMBA_DISABLE_JIT="1", NQFORMAT_CACHE_DIR=str(tmp_path))
    assert found == ["False", str(float(nqformat.load_file(weights_file)["w"].sum()))]
    assert not any(tmp_path.iterdir())


@needs_kernels
@pytest.mark.slow
def test_bad_caches_do_no_harm(weights_file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = first_tensor(weights_file, NQFORMAT_CACHE_DIR=str(cache))
    (entry,) = cache.iterdir()
    entry.chmod(entry.stat().st_mode | stat.S_IWOTH)
    assert first_tensor(weights_file, NQFORMAT_CACHE_DIR=str(cache)) == first
    entry.chmod(0o600)
    entry.write_bytes(entry.read_bytes()[:-1000])
    assert first_tensor(weights_file, NQFORMAT_CACHE_DIR=str(cache)) == first
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert first_tensor(weights_file, NQFORMAT_CACHE_DIR=str(blocked / "cache")) == first
    assert first_tensor(weights_file, NQFORMAT_CACHE_DIR="") == first
