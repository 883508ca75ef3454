"""Speed and size of the codec against other coders in one run, one core, CPU time.

    python benchmarks/codec.py [--quick]            add NQZ_DATA=path/to/data for real networks,
                                                    NQZ_PEERS and NQZ_PEERS_PYTHON for NNCodec

Writes benchmarks/results/codec.json and codec.png. Figures printed of streams are the best of 25 rounds
in which all candidates take turns, with ratios of the best and, in brackets, of the medians.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from codec_plot import draw_codec
from harness import compare, data_folder, machine, read, write
from network_streams import network_row, network_table, quantized_networks
from peer_codecs import index_coders, nncodec, zipnn_coder, zstd_coders

import nqformat
from nqformat import Codebook, CodebookTensor, RawTensor, codings
from nqformat import kernels as codec_kernels
from nqformat.decoding import decode_bytes, decode_dense, decode_sparse
from nqformat.prefix_code import PrefixCode
from nqformat.tans import TansCode
from nqformat.workers import Workers

os.environ.setdefault("NQFORMAT_KERNELS", "numba")
# name: distribution, levels, bits, wanted ratio to zstd -1
STREAMS = {
    "laplace 16": ("laplace", 16, 2.5, 2.5),
    "gauss 16": ("normal", 16, 3.4, 1.25),
    "gauss 32": ("normal", 32, 4.05, 1.1),
    "laplace 256": ("laplace", 256, 4.9, 1.0),
}


NNCODEC_SYMBOLS = 1 << 20
PACKAGES = ("numpy", "numba", "llvmlite", "zstandard", "constriction", "zipnn")


def entropy(symbols: np.ndarray) -> float:
    counts = np.bincount(symbols)
    share = counts[counts > 0] / symbols.size
    return float(-(share * np.log2(share)).sum())


def stream(distribution: str, levels: int, bits: float, n: int, seed: int = 0) -> np.ndarray:
    """Independent symbols of about `bits` bits: a uniform quantizer whose step is found by bisection."""
    numbers = getattr(np.random.default_rng(seed), distribution)(size=n)

    def quantized(step: float) -> np.ndarray:
        return np.clip(np.round(numbers / step) + levels // 2, 0, levels - 1).astype(np.uint8)

    low, high = 0.01, 4.0
    for _ in range(25):
        step = (low * high) ** 0.5
        symbols = np.clip(np.round(numbers[:200_000] / step) + levels // 2, 0, levels - 1)
        wide = entropy(symbols.astype(np.int64)) > bits
        # with a small step nearly all numbers are clipped, so the entropy falls again: stay above its peak
        clipped = np.mean((symbols == 0) | (symbols == levels - 1)) > 0.2
        low, high = (step, high) if wide or clipped else (low, step)
    return quantized(step)


@contextmanager
def pairs(wanted: bool) -> Iterator[None]:
    """Make the writer group small numbers, or keep it from that."""
    gain = codings._FAST_GROUP_GAIN
    codings._FAST_GROUP_GAIN = -1.0 if wanted else 1.0
    try:
        yield
    finally:
        codings._FAST_GROUP_GAIN = gain


def codebook(levels: int) -> Codebook:
    return Codebook(values=np.linspace(-1, 1, levels).astype(np.float32))


def peers(
    symbols: np.ndarray, levels: tuple[int, ...]
) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Calls that decode the symbols with other coders, and the bits they take; one level: zstd alone."""
    coders = index_coders([symbols], levels) if len(levels) > 1 else zstd_coders(symbols.tobytes(), levels)
    bits = {name: 8 * coder.n_bytes / symbols.size for name, coder in coders.items()}
    return {name: coder.decode for name, coder in coders.items()}, bits


def dense(
    name: str, symbols: np.ndarray, levels: int, zstd_levels: tuple[int, ...], *, grouped: bool = False
) -> dict[str, Any]:
    """Decode one dense tensor to indices and to float32, beside the peers on its index bytes."""
    n = symbols.size
    tensor = CodebookTensor(indices=symbols, codebook=codebook(levels))
    with pairs(grouped):
        content = nqformat.save({"w": tensor}, prefer="speed")
    with nqformat.from_bytes(content, threads=1) as file:
        assert np.array_equal(file.get_tensor("w"), tensor.decode())
        part = file.decoder.slices.slice_of(file._record("w"), "values")
        coded = file.decoder.slices.coded("w", part)
        indices = np.empty(n, dtype=np.uint8)
        weights = np.empty(n, dtype=np.float32)
        workers = Workers(1)
        calls, bits = peers(symbols, zstd_levels)
        record = file._record("w")
        table, values_of = file.decoder.value_rule(record, record.fields, coded.record)
        calls = {
            "nqz symbols": lambda: decode_bytes(coded, indices, workers),
            "nqz float32": lambda: decode_dense(
                coded, table=table, values_of=values_of, out=weights, base=0, workers=workers
            ),
            "nqz get_tensor": lambda: file.get_tensor("w"),
            "fill float32": lambda: weights.fill(1.0),
            **calls,
        }
        taken = compare(calls)
        mapping = coded.record.mapping
    seconds = {key: value["best"] for key, value in taken.items()}
    row = {
        "n": n,
        "levels": levels,
        "entropy_bits": entropy(symbols),
        "nqz_bits": 8 * len(content) / n,
        "peer_bits": bits,
        "group": mapping.group,
        "seconds": taken,
        "gsymbols_per_second": n / seconds["nqz symbols"] / 1e9,
        "float32_gb_per_second": 4 * n / seconds["nqz float32"] / 1e9,
        "fill_gb_per_second": 4 * n / seconds["fill float32"] / 1e9,
        "ratio_to": {p: seconds[p] / seconds["nqz symbols"] for p in bits},
        "median_ratio_to": {p: taken[p]["median"] / taken["nqz symbols"]["median"] for p in bits},
    }
    others = "  ".join(f"{p} {row['ratio_to'][p]:.2f}x ({row['median_ratio_to'][p]:.2f})" for p in bits)
    print(
        f"{name:13} {row['entropy_bits']:.2f} bits, stored {row['nqz_bits']:.3f} (group {row['group']}): "
        f"{row['gsymbols_per_second']:.2f} Gsym/s, float32 {row['float32_gb_per_second']:.1f} GB/s "
        f"(fill {row['fill_gb_per_second']:.1f}); faster than {others}"
    )
    return row


def sparse(n: int, zstd_levels: tuple[int, ...]) -> dict[str, Any]:
    """Decode a matrix of 8 % density, 32 clusters, into memory that was used before."""
    rng = np.random.default_rng(1)
    side = int(n**0.5)
    levels = 1 + np.minimum(np.abs(np.round(rng.normal(size=(side, side)) * 6)), 31)
    indices = np.where(rng.random((side, side)) < 0.08, levels, 0).astype(np.uint8)
    values = np.concatenate([[0.0], np.linspace(-1, 1, 32)]).astype(np.float32)
    tensor = CodebookTensor(indices=indices, codebook=Codebook(values=values))
    content = nqformat.save({"w": tensor}, prefer="speed")
    plain = tensor.decode()
    with nqformat.from_bytes(content, threads=1) as file:
        assert np.array_equal(file.get_tensor("w"), plain)
        record = file._record("w")
        coded = file.decoder.slices.of(record, "values")
        positions = file.decoder.slices.of(record, "positions")
        table, values_of = file.decoder.value_rule(record, record.fields, coded.record)
        columns = plain.shape if record.fields.column_scan else None
        out = np.zeros(plain.size, dtype=np.float32)
        rule = {"table": table, "values_of": values_of, "out": out, "columns": columns, "workers": Workers(1)}

        def whole() -> None:
            decode_sparse(coded, positions, **rule)

        calls, bits = peers(indices.reshape(-1), zstd_levels)
        taken = compare({"nqz": whole, "fill": lambda: out.fill(0), **calls})
        whole()
        assert np.array_equal(out.reshape(plain.shape), plain)
    seconds = {key: value["best"] for key, value in taken.items()}
    row = {
        "n": plain.size,
        "layout": record.layout.name,
        "column_scan": record.fields.column_scan,
        "bits_per_weight": 8 * len(content) / plain.size,
        "seconds": taken,
        "dense_gb_per_second": plain.nbytes / seconds["nqz"] / 1e9,
        "fill_gb_per_second": plain.nbytes / seconds["fill"] / 1e9,
        "nanoseconds_per_nonzero": 1e9 * seconds["nqz"] / int((indices > 0).sum()),
        "ratio_to": {p: seconds[p] / seconds["nqz"] for p in bits},
    }
    print(
        f"8 % {row['layout']}{' by columns' if row['column_scan'] else ''}: "
        f"{row['dense_gb_per_second']:.1f} GB/s dense-equivalent "
        f"(fill {row['fill_gb_per_second']:.1f}), {row['nanoseconds_per_nonzero']:.2f} ns a nonzero, "
        f"{row['bits_per_weight']:.3f} bits a weight, {row['ratio_to']['zstd -1']:.1f}x zstd -1 on indices"
    )
    return row


def encode(symbols: np.ndarray) -> dict[str, Any]:
    """Codeword packing and histogram."""
    counts = np.bincount(symbols, minlength=256)
    codes, lengths = PrefixCode.from_counts(counts, 12).codewords
    content = symbols.tobytes()
    zstd = zstandard.ZstdCompressor(level=1)
    chunks = [symbols[i : i + 65_536] for i in range(0, symbols.size, 65_536)]
    quarters = [0, 16_384, 32_768, 49_152, 65_536]
    taken = compare(
        {
            "pack": lambda: [codec_kernels.pack_codes(chunk, quarters, codes, lengths) for chunk in chunks],
            "histogram": lambda: codec_kernels.count_symbols(symbols),
            "numpy bincount": lambda: np.bincount(symbols, minlength=256),
            "zstd -1": lambda: zstd.compress(content),
        }
    )
    row = {f"{k} gsymbols_per_second": symbols.size / v["best"] / 1e9 for k, v in taken.items()}
    print("encode: " + ", ".join(f"{k.split()[0]} {v:.2f} Gsym/s" for k, v in row.items()))
    return {**row, "seconds": taken}


def tans(symbols: np.ndarray) -> dict[str, Any]:
    """Kernels of tANS beside those of a prefix code, on chunks of four sub-streams."""
    counts = np.bincount(symbols, minlength=256)
    code, prefix = TansCode.from_counts(counts, 3, 12), PrefixCode.from_counts(counts, 12)
    chunks = [symbols[i : i + 65_536] for i in range(0, symbols.size, 65_536)]
    bounds = [0, 16_384, 32_768, 49_152, 65_536]
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: [codec_kernels.encode_tans_streams(c, bounds, code.encode_tables) for c in chunks]
    }
    for name, pack, unpack in (
        (
            "decode",
            lambda chunk: codec_kernels.encode_tans_streams(chunk, bounds, code.encode_tables),
            lambda b, ends: codec_kernels.decode_tans_streams(b, ends, code.decode_table, 12, bounds),
        ),
        (
            "prefix code decode",
            lambda chunk: codec_kernels.pack_codes(chunk, bounds, *prefix.codewords),
            lambda b, ends: codec_kernels.decode_prefix_streams(b, ends, prefix, bounds),
        ),
    ):
        coded = []
        for chunk in chunks:
            parts = pack(chunk)
            ends = [0, *np.cumsum([len(p) for p in parts]).tolist()]
            coded.append((np.frombuffer(b"".join(parts), dtype=np.uint8), ends))
            assert np.array_equal(unpack(*coded[-1]), chunk)
        calls[name] = lambda coded=coded, unpack=unpack: [unpack(*c) for c in coded]
    taken = compare(calls)
    row = {f"{k} gsymbols_per_second": symbols.size / v["best"] / 1e9 for k, v in taken.items()}
    print("tANS: " + ", ".join(f"{k.rpartition(' ')[0]} {v:.2f} Gsym/s" for k, v in row.items()))
    return {**row, "seconds": taken}


def planes(n: int) -> dict[str, Any]:
    """Raw bfloat16 and float32 tensors with their exponents coded."""
    rng = np.random.default_rng(2)
    weights = (rng.normal(size=n) * 0.02).astype(np.float32)
    halves = (weights.view(np.uint32) >> 16).astype(np.uint16)
    rows: dict[str, Any] = {}
    for label, tensor in (
        ("bfloat16", RawTensor(bits=halves, dtype=nqformat.DType.BFLOAT16)),
        ("float32", RawTensor(bits=weights, dtype=nqformat.DType.FLOAT32)),
    ):
        content = nqformat.save({"w": tensor})
        stored = tensor.bits.tobytes()
        coders = {**zstd_coders(stored, (1,)), "zipnn": zipnn_coder(stored, label)}
        others = {name: coder for name, coder in coders.items() if coder is not None}
        target = np.empty_like(tensor.bits)
        source = tensor.bits.copy()
        with nqformat.from_bytes(content, threads=1, bfloat16="uint16") as file:
            assert file.get_tensor("w").tobytes() == stored
            calls: dict[str, Callable[[], Any]] = {
                "nqz": partial(file.get_tensor, "w"),
                **{name: coder.decode for name, coder in others.items()},
                "copy": partial(np.copyto, target, source),
            }
            taken = compare(calls)
        seconds = {key: value["best"] for key, value in taken.items()}
        rows[label] = {
            "ratio": len(content) / len(stored),
            "peer_ratios": {name: coder.n_bytes / len(stored) for name, coder in others.items()},
            "seconds": taken,
            "gb_per_second": len(stored) / seconds["nqz"] / 1e9,
            "ratio_to": {name: seconds[name] / seconds["nqz"] for name in others},
        }
        beside = ", ".join(
            f"{name} {100 * share:.1f} % ({rows[label]['ratio_to'][name]:.1f} x)"
            for name, share in rows[label]["peer_ratios"].items()
        )
        print(
            f"raw {label}: {100 * rows[label]['ratio']:.1f} % of its bytes, "
            f"{rows[label]['gb_per_second']:.2f} GB/s; others (nqz decodes so many times faster): {beside}"
        )
    return rows


def threads(symbols: np.ndarray, levels: int) -> dict[str, Any]:
    """Two threads against one: wall clock, and CPU time of each of two threads at work together."""
    content = nqformat.save({"w": CodebookTensor(indices=symbols, codebook=codebook(levels))})
    wall: dict[int, float] = {}
    for count in (1, 2):
        with nqformat.from_bytes(content, threads=count) as file:
            record = file._record("w")
            coded = file.decoder.slices.of(record, "values")
            out = np.empty(symbols.size, dtype=np.uint8)
            workers = Workers(count)
            decode_bytes(coded, out, workers)
            best = []
            for _ in range(9):
                started = time.perf_counter()
                decode_bytes(coded, out, workers)
                best.append(time.perf_counter() - started)
            wall[count] = min(best)
            workers.close()

    def alone(_: int = 0) -> float:
        with nqformat.from_bytes(content, threads=1) as file:
            record = file._record("w")
            coded = file.decoder.slices.of(record, "values")
            out = np.empty(symbols.size, dtype=np.uint8)
            workers = Workers(1)
            decode_bytes(coded, out, workers)
            taken = []
            for _ in range(9):
                started = time.thread_time()
                decode_bytes(coded, out, workers)
                taken.append(time.thread_time() - started)
            return min(taken)

    single = alone()
    barrier = threading.Barrier(2)

    def together(i: int) -> float:
        barrier.wait()
        return alone(i)

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(together, range(2)))
    row = {
        "wall_speedup": wall[1] / wall[2],
        "cpu_seconds_alone": single,
        "cpu_seconds_each_of_two": both,
        "cpu_speedup": 2 * single / max(both),
    }
    print(f"two threads: {row['wall_speedup']:.2f}x by wall, {row['cpu_speedup']:.2f}x by CPU time a thread")
    return row


_COLD = """
import sys, time
import nqformat
with nqformat.safe_open(sys.argv[1]) as file:
    file.get_tensor("w")
print(time.process_time(), "numba" in sys.modules)
"""


def cold(symbols: np.ndarray, levels: int, folder: Path) -> dict[str, Any]:
    """CPU time of a fresh process up to its first decoded tensor, with a warm kernel cache."""
    path = folder / "cold.nqz"
    nqformat.save_file({"w": CodebookTensor(indices=symbols[:1_000_000], codebook=codebook(levels))}, path)
    taken = {}
    for label, code, arguments in (
        ("import numpy", "import numpy, time; print(time.process_time(), False)", []),
        ("first tensor", _COLD, [str(path)]),
    ):
        runs = []
        for _ in range(6):
            done = subprocess.run(
                [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
            )
            seconds, numba_imported = done.stdout.split()
            runs.append(float(seconds))
        taken[label] = sorted(runs[1:])[len(runs[1:]) // 2]
    print(
        f"cold start: {taken['first tensor']:.3f} s CPU to the first tensor (1 M elements), import numpy "
        f"{taken['import numpy']:.3f} s, numba imported: {numba_imported}"
    )
    path.unlink()
    return {**taken, "numba_imported": numba_imported == "True"}


def networks(folder: Path, zstd_levels: tuple[int, ...]) -> dict[str, Any]:
    """Real networks with every coder."""
    found = list(quantized_networks(folder))
    peer = nncodec({network.name: network.integers for network in found})
    rows = {}
    for network in found:
        rows[network.name] = network_row(network, zstd_levels, peer.get(network.name))
        print(network_table(network.name, rows[network.name]))
    return rows


def nncodec_streams(made: dict[str, np.ndarray]) -> dict[str, Any]:
    """NNCodec on the first part of each synthetic stream, centred."""
    cases = {
        name: {"w": symbols[:NNCODEC_SYMBOLS].astype(np.int32) - STREAMS[name][1] // 2}
        for name, symbols in made.items()
    }
    rows = nncodec(cases)
    for name, row in rows.items():
        n = cases[name]["w"].size
        row["bits"] = 8 * row["bytes"] / n
        row["gsymbols_per_second"] = n / row["decode"]["median"] / 1e9
        print(
            f"NNCodec {name}: {row['bits']:.3f} bits, {1e3 * row['gsymbols_per_second']:.1f} Msym/s decoded, "
            f"{n / row['encode']['median'] / 1e6:.1f} encoded"
        )
    return rows


def measure_streams(n: int, zstd_levels: tuple[int, ...]) -> dict[str, Any]:
    """Everything but the real networks."""
    results: dict[str, Any] = {}
    made = {name: stream(d, levels, bits, n) for name, (d, levels, bits, _) in STREAMS.items()}
    results["dense"] = {
        name: dense(name, symbols, STREAMS[name][1], zstd_levels) for name, symbols in made.items()
    }
    results["grouped"] = {
        name: dense(f"{name} g", symbols, STREAMS[name][1], zstd_levels[:1], grouped=True)
        for name, symbols in made.items()
        if STREAMS[name][1] <= 16
    }
    results["sparse"] = sparse(n, zstd_levels[:2])
    results["encode"] = encode(made["gauss 16"])
    results["tans"] = tans(made["gauss 16"])
    results["planes"] = planes(n)
    results["threads"] = threads(made["gauss 16"], 16)
    results["nncodec"] = nncodec_streams(made)
    with tempfile.TemporaryDirectory() as work:
        results["cold"] = cold(made["gauss 16"], 16, Path(work))
    print(f"goals against zstd -1: {', '.join(f'{k} {v[3]}x' for k, v in STREAMS.items())}")
    return results


def measure_networks(zstd_levels: tuple[int, ...]) -> dict[str, Any]:
    """The real networks, if their data is there."""
    folder = data_folder()
    if folder is None:
        print("NQZ_DATA is not set to a folder with load.py: real networks are left out")
        return {}
    return {"networks": networks(folder, zstd_levels), "networks_machine": machine(*PACKAGES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller streams, no zstd -19")
    parser.add_argument("--only", choices=("streams", "networks"), help="keep what is there of the others")
    arguments = parser.parse_args()
    zstd_levels = (1, 3) if arguments.quick else (1, 3, 19)
    results = read("codec") if arguments.only else {}
    if arguments.only != "networks":
        results["machine"] = machine(*PACKAGES)
        results.update(measure_streams(1 << (20 if arguments.quick else 22), zstd_levels))
        write("codec", results)
    if arguments.only != "streams":
        results.update(measure_networks(zstd_levels))
    path = write("codec", results)
    print(f"written to {path}")
    if draw_codec(results, path.with_suffix(".png")):
        print(f"drawn in {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
