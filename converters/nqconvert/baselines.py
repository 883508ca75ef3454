"""What anyone gets without a quantizer of ours: integers per channel and a general compressor."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nqformat.dtypes import storage_bits
from nqformat.optional_packages import require_package

from .quantization import is_weight
from .sources import ModelSource

__all__ = ["BASELINES", "Baseline", "baseline_file", "integers_per_channel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Symmetric integers of so many bits for each output channel, then a compressor."""

    n_bits: int
    compressor: str

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"int{self.n_bits}+{self.compressor}"


BASELINES = tuple(
    Baseline(n_bits=n_bits, compressor=compressor) for n_bits in (8, 4) for compressor in ("zstd", "lzma")
)


def baseline_file(baseline: Baseline, source: ModelSource) -> tuple[int, dict[str, np.ndarray]]:
    """Return the bytes a baseline takes, graph and scales and other tensors included, and what it decodes to.

    Each part is compressed at the compressor's strongest setting: packed integers and scales of all weights
    together, all other tensors together, and the graph. No names or directory are charged.

    Raises
    ------
    MissingDependencyError
        If the compressor is not installed.
    """
    compress = _compressor(baseline.compressor)
    packed, others, decoded = bytearray(), bytearray(), {}
    for name, array in source.tensors.items():
        if not is_weight(array) or array.dtype.kind != "f":
            others += storage_bits(array).tobytes()
            decoded[name] = array
            continue
        integers, scales = integers_per_channel(array, baseline.n_bits)
        packed += _packed(integers, baseline.n_bits)
        others += scales.tobytes()
        shape = (-1, *[1] * (array.ndim - 1))
        decoded[name] = (integers * scales.reshape(shape)).astype(array.dtype)
    n_bytes = len(compress(bytes(packed))) + len(compress(bytes(others)))
    return n_bytes + len(zlib.compress(source.graph or b"", 9)), decoded


def integers_per_channel(array: np.ndarray, n_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values of `n_bits` bits and a float32 scale for each index of axis 0.

    Examples
    --------
    >>> integers, scales = integers_per_channel(np.float32([[7.0, -3.2], [0.0, 0.0]]), 4)
    >>> integers.tolist(), scales.tolist()
    ([[7, -3], [0, 0]], [1.0, 1.0])
    """
    largest = 2 ** (n_bits - 1) - 1
    rows = array.reshape(array.shape[0], -1).astype(np.float32)
    peaks = np.abs(rows).max(axis=1)
    scales = np.where(peaks > 0, peaks / largest, np.float32(1)).astype(np.float32)
    integers = np.rint(rows / scales[:, None]).astype(np.int8)
    return integers.reshape(array.shape), scales


def _packed(integers: np.ndarray, n_bits: int) -> bytes:
    flat = integers.reshape(-1)
    if n_bits == 8:
        return flat.tobytes()
    nibbles = np.append(flat, np.zeros(flat.size % 2, dtype=np.int8)).astype(np.uint8) & 15
    return (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()


def _compressor(name: str) -> Callable[[bytes], bytes]:
    if name == "lzma":
        return lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)
    zstandard = require_package("zstandard")
    return lambda content: bytes(zstandard.ZstdCompressor(level=22).compress(content))
