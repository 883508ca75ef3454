"""Bytes of real networks and of synthetic streams: file, overhead, layouts, against order-0 entropy.

    NQZ_DATA=path/to/data python benchmarks/compression.py [case ...]

Writes benchmarks/results/compression.json. Without NQZ_DATA only the synthetic cases run, and it says so.
Every file is read back and compared bit for bit. `ideal` of a random mask is what a coder needs who knows the
densities that its rows were drawn with, and which rows and columns are empty at the entropy of that choice;
of a real mask, independent bits of its density. Streams stand beside the order-0 entropy of what was drawn.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from harness import data_folder, loaders, state_dict

import nqformat
from nqconvert.quantizers import QuantizerSettings
from nqconvert.quantizers.kmeans import quantize_kmeans
from nqconvert.quantizers.lossless import quantize_lossless
from nqformat import AffineTensor, Codebook, CodebookTensor, Layout, RawTensor
from nqformat.accounting import account, order0_bits
from nqformat.dtypes import DType, float32_to_bfloat16

RESULTS = Path(__file__).parent / "results" / "compression.json"
RATIOS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.2, 0.3)
PREFERENCES = ("size", "speed")

Tensors = dict[str, Any]


def lenet(folder: Path, name: str, clusters: int) -> Tensors:
    weights = state_dict(folder / "pruned_lenets" / f"{name}.pt")
    matrices = {n: w for n, w in weights.items() if w.ndim > 1}
    return {
        **quantize_kmeans(matrices, None, QuantizerSettings(clusters=clusters)),
        **{n: w for n, w in weights.items() if w.ndim == 1},
    }


def folded_resnet32(folder: Path) -> dict[str, np.ndarray]:
    """ResNet-32 with its batch norms folded into the convolutions before them."""
    loaded = state_dict(folder / "resnet_cifar10" / "resnet32_jpegft.pt")
    folded: dict[str, np.ndarray] = {}
    for name, weight in loaded.items():
        if weight.ndim == 4:
            norm = name.replace("conv", "bn").removesuffix(".weight")
            scale = loaded[f"{norm}.weight"] / np.sqrt(loaded[f"{norm}.running_var"] + 1e-5)
            folded[name] = weight * scale[:, None, None, None]
            folded[name.replace("weight", "bias")] = (
                loaded[f"{norm}.bias"] - loaded[f"{norm}.running_mean"] * scale
            )
        elif name.startswith("linear"):
            folded[name] = weight
    return folded


def resnet32_uniform(folder: Path) -> Tensors:
    """Uniform steps of 0.9 standard deviations, dense."""
    tensors: Tensors = {}
    for name, weight in folded_resnet32(folder).items():
        if weight.ndim == 1:
            tensors[name] = weight
            continue
        step = float(np.float32(0.9 * weight.std()))
        tensors[name] = AffineTensor(k=np.rint(weight / step).astype(np.int32), step=step)
    return tensors


def resnet32_pruned(folder: Path) -> Tensors:
    """The largest fifth of each layer's weights, 16 clusters."""
    weights = folded_resnet32(folder)
    matrices = {n: w for n, w in weights.items() if w.ndim > 1}
    kept = {n: np.where(np.abs(w) >= np.quantile(np.abs(w), 0.8), w, 0) for n, w in matrices.items()}
    return {
        **quantize_kmeans(kept, None, QuantizerSettings(clusters=16)),
        **{n: w for n, w in weights.items() if w.ndim == 1},
    }


def squeezenet(folder: Path) -> Tensors:
    layers, _ = loaders(folder).squeezenet_deepcomp()
    tensors = {}
    for name, (weight, bias) in layers.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    return dict(quantize_lossless(tensors))


def with_entries(indices: np.ndarray, n_entries: int) -> CodebookTensor:
    """Indices with a codebook of float16 values, entry 0 being zero."""
    values = (np.arange(n_entries) / 64).astype(np.float16).astype(np.float32)
    return CodebookTensor(
        indices=indices.astype(np.uint8), codebook=Codebook(values=values, stored_as=DType.FLOAT16)
    )


def random_mask(rows: int, columns: int, densities: np.ndarray, seed: int) -> CodebookTensor:
    kept = np.random.default_rng(seed).random((rows, columns)) < densities[:, None]
    return with_entries(kept, 2)


def ideal_mask_bits(tensor: CodebookTensor, densities: np.ndarray, n_columns: int | None = None) -> float:
    """Bits that this mask takes for a coder who knows the densities its rows were drawn with."""
    n = n_columns or tensor.indices.shape[1]
    drawn = densities > 0
    p, k = densities[drawn], np.count_nonzero(tensor.indices, axis=1)[drawn]
    return float(-(k * np.log2(p) + (n - k) * np.log2(1 - p)).sum())


def entropy(p: float) -> float:
    """Entropy of one choice of probability `p`, in bits."""
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def mask_cases() -> Iterator[tuple[str, CodebookTensor, float]]:
    """Random masks with the bits that they must take."""
    rng = np.random.default_rng(3)
    for density in RATIOS:
        same = np.full(1000, density)
        mask = random_mask(1000, 1000, same, 1)
        yield f"mask {density:g} alike rows", mask, ideal_mask_bits(mask, same)
    for density in (0.005, 0.01, 0.02, 0.04):
        spread = density * np.exp(rng.normal(0, 1.0, 1000))
        spread = np.minimum(spread * density / spread.mean(), 0.9)
        mask = random_mask(1000, 4000, spread, 2)
        yield f"mask {density:g} unlike rows", mask, ideal_mask_bits(mask, spread)
        kept = np.where(rng.random(1000) < 0.6, density / 0.6, 0.0)
        mask = random_mask(1000, 2000, kept, 4)
        yield f"mask {density:g} empty rows", mask, ideal_mask_bits(mask, kept) + 1000 * entropy(0.6)
        columns = rng.random(2000) < 0.5
        drawn = random_mask(1000, 2000, np.full(1000, 2 * density), 5).indices * columns
        mask = with_entries(drawn, 2)
        bits = ideal_mask_bits(mask, np.full(1000, 2 * density), int(columns.sum()))
        yield f"mask {density:g} empty columns", mask, bits + 2000 * entropy(0.5)


def real_masks(folder: Path) -> Iterator[tuple[str, CodebookTensor, float]]:
    """Masks of pruned networks, with the bits of as many independent choices."""
    names = ("lenet300_p8", "lenet5_p8")
    lenets = {name: state_dict(folder / "pruned_lenets" / f"{name}.pt") for name in names}
    layers, _ = loaders(folder).squeezenet_deepcomp()
    sources = {
        **{f"lenet300_p8 {n}": lenets["lenet300_p8"][f"{n}.weight"] for n in ("fc1", "fc2")},
        **{f"lenet5_p8 {n}": lenets["lenet5_p8"][f"{n}.weight"] for n in ("fc1", "c2")},
        **{f"squeezenet {n}": layers[n][0] for n in ("fire9/conv3x3_2", "conv_final")},
    }
    for label, weight in sources.items():
        mask = with_entries((weight != 0).reshape(weight.shape[0], -1), 2)
        yield f"real mask {label}", mask, weight.size * entropy(float(mask.indices.mean()))


def stream_cases(n: int) -> Iterator[tuple[str, CodebookTensor]]:
    """Independent gaussian and laplacian numbers in uniform steps."""
    rng = np.random.default_rng(11)
    for label, draw in (("gaussian", rng.normal), ("laplacian", rng.laplace)):
        for levels, step in ((16, 1.0), (16, 0.45), (32, 0.3), (256, 0.04)):
            k = np.rint(draw(size=n) / step).astype(np.int64)
            k = np.clip(k, -(levels // 2) + 1, levels // 2 - 1)
            yield f"{label} {levels} levels", with_entries(np.where(k > 0, 2 * k - 1, -2 * k), levels)


def bfloat16_cases(folder: Path | None) -> Iterator[tuple[str, Tensors]]:
    """Weights rounded to bfloat16 and float16, kept bit for bit."""
    rng = np.random.default_rng(17)
    scales = np.exp(rng.normal(-3.5, 0.7, 2048))[:, None]
    sources = {"gaussian rows": {"w": (rng.normal(size=(2048, 2048)) * scales).astype(np.float32)}}
    if folder is not None:
        sources["resnet32"] = folded_resnet32(folder)
        for name in ("lenet300_p8", "lenet5_p8"):
            sources[name] = state_dict(folder / "pruned_lenets" / f"{name}.pt")
    for label, weights in sources.items():
        yield (
            f"bfloat16 {label}",
            {n: RawTensor(bits=float32_to_bfloat16(w), dtype=DType.BFLOAT16) for n, w in weights.items()},
        )
        yield f"float16 {label}", {n: w.astype(np.float16) for n, w in weights.items()}


def ungrouped_bits(tensors: Tensors) -> float:
    """Order-0 entropy of each tensor's own values and, if it has zeros, row-scan gaps: whichever is less."""
    total = 0.0
    for tensor in tensors.values():
        if isinstance(tensor, AffineTensor):
            numbers, is_zero = tensor.k.reshape(-1), (tensor.k == 0).reshape(-1) & (tensor.offset == 0)
        elif isinstance(tensor, CodebookTensor):
            numbers = tensor.indices.reshape(-1)
            is_zero = (tensor.codebook.values.view("<u4") == 0)[numbers]
        else:
            continue
        positions = np.flatnonzero(~is_zero)
        sparse = order0_bits(numbers[positions]) + order0_bits(np.diff(positions, prepend=-1))
        total += min(order0_bits(numbers), sparse)
    return total


def measure(tensors: Tensors, prefer: str) -> dict[str, Any]:
    """Write, read back, compare; bytes by account."""
    started = time.process_time()
    content = nqformat.save(tensors, prefer=prefer)
    encode_seconds = time.process_time() - started
    started = time.process_time()
    decoded = nqformat.load(content, bfloat16="uint16")
    decode_seconds = time.process_time() - started
    for name, tensor in tensors.items():
        expected = tensor if isinstance(tensor, np.ndarray) else tensor.decode()
        assert decoded[name].tobytes() == np.ascontiguousarray(expected).tobytes(), name
    with nqformat.from_bytes(content) as file:
        bytes_by_account = account(file)
        layouts: dict[str, int] = {}
        codecs: dict[str, int] = {}
        for stream in file.directory.streams:
            key = f"{stream.kind.name.lower()} {stream.codec.name.lower()}"
            codecs[key] = codecs.get(key, 0) + 1
        for t in bytes_by_account.tensors:
            layout = t.layout.name.lower() if t.layout is not None else "unknown"
            layouts[layout] = layouts.get(layout, 0) + 1
    packed = (Layout.DENSE, Layout.SPARSE, Layout.MASK)
    coded = sum(t.stored_bytes - t.codebook_bytes for t in bytes_by_account.tensors if t.layout in packed)
    return {
        "prefer": prefer,
        "file_bytes": len(content),
        "overhead_bytes": bytes_by_account.overhead,
        "tables_bytes": bytes_by_account.tables,
        "coded_bytes": coded,
        "layouts": layouts,
        "streams": codecs,
        "encode_seconds": round(encode_seconds, 3),
        "decode_seconds": round(decode_seconds, 3),
    }


def zstd_bytes(tensors: Tensors) -> int:
    """The plain elements through zstd -19."""
    plain = b"".join(
        np.ascontiguousarray(t if isinstance(t, np.ndarray) else t.decode()).tobytes()
        for t in tensors.values()
    )
    return len(zstandard.ZstdCompressor(level=19).compress(plain))


def report(row: dict[str, Any]) -> None:
    against = "".join(
        f", {label} {row[key]:,.0f} ({100 * (row[of] / row[key] - 1):+.2f} %)"
        for key, of, label in (
            ("entropy_bytes", "coded_bytes", "coded against order-0"),
            ("ideal_bytes", "coded_with_tables", "against ideal"),
            ("zstd19_bytes", "file_bytes", "against zstd -19"),
        )
        if key in row
    )
    print(
        f"{row['case']:32s} {row['prefer']:5s} {row['file_bytes']:>9,} bytes, "
        f"overhead {row['overhead_bytes']:,}{against}, {row['layouts']} {row['streams']} "
        f"{row['encode_seconds']:.2f}/{row['decode_seconds']:.2f} s",
        flush=True,
    )


def network_cases(folder: Path) -> dict[str, Callable[[], Tensors]]:
    return {
        "lenet300_p8 k16": lambda: lenet(folder, "lenet300_p8", 16),
        "lenet5_p8 k16": lambda: lenet(folder, "lenet5_p8", 16),
        "resnet32 uniform 0.9": lambda: resnet32_uniform(folder),
        "resnet32 20% k16": lambda: resnet32_pruned(folder),
        "squeezenet bit-exact": lambda: squeezenet(folder),
    }


def run_networks(folder: Path, wanted: list[str]) -> Iterator[dict[str, Any]]:
    for label, make in network_cases(folder).items():
        if wanted and not any(w in label for w in wanted):
            continue
        tensors = make()
        entropy = ungrouped_bits(tensors) / 8
        for prefer in PREFERENCES:
            yield {"case": label, "entropy_bytes": entropy, **measure(tensors, prefer)}


def run_synthetic(folder: Path | None, wanted: list[str]) -> Iterator[dict[str, Any]]:
    empty = len(nqformat.save({"w": with_entries(np.zeros((1, 1)), 2)}))
    masks = list(mask_cases()) + (list(real_masks(folder)) if folder is not None else [])
    for label, mask, bits in masks:
        if not wanted or any(w in label for w in wanted):
            row = measure({"w": mask}, "size")
            yield {
                "case": label,
                "ideal_bytes": bits / 8,
                "coded_with_tables": row["file_bytes"] - empty,
                **row,
            }
    for label, tensor in stream_cases(1_000_000):
        if not wanted or any(w in label for w in wanted):
            entropy = order0_bits(tensor.indices) / 8
            for prefer in PREFERENCES:
                row = measure({"w": tensor}, prefer)
                yield {"case": label, "entropy_bytes": entropy, "bits": 8e-6 * entropy, **row}
    for label, tensors in bfloat16_cases(folder):
        if not wanted or any(w in label for w in wanted):
            row = measure(tensors, "size")
            plain = sum(2 * math.prod(t.shape) for t in tensors.values())
            yield {"case": label, "plain_bytes": plain, "zstd19_bytes": zstd_bytes(tensors), **row}


def main() -> None:
    wanted = sys.argv[1:]
    folder = data_folder()
    if folder is None:
        print("NQZ_DATA is not set to a folder with load.py: real networks are left out", file=sys.stderr)
    rows = []
    for source in (run_networks(folder, wanted) if folder else iter(()), run_synthetic(folder, wanted)):
        for row in source:
            report(row)
            rows.append(row)
    if not wanted:
        machine = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
