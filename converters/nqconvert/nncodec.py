"""What NNCodec (ISO/IEC 15938-17) makes of a model, where its package is installed."""

from __future__ import annotations

import lzma
import tempfile
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np

from nqformat.dtypes import storage_bits
from nqformat.errors import ConversionError

from .sources import ModelSource

__all__ = ["NNCODEC_QPS", "nncodec_file", "nncodec_missing"]

NNCODEC_QPS = (-38, -32, -26, -20)
"""Quantization parameters that are compared, from fine to coarse; -38 is the package's default."""

_PACKAGE = "nncodec.nn"


def nncodec_missing() -> str:
    """Say in one line why NNCodec cannot be compared; empty if it can."""
    try:
        import_module(_PACKAGE)
    except ImportError as error:
        missing = "is not installed" if (error.name or "").startswith("nncodec") else f"cannot start: {error}"
        return f"NNCodec (pip install nncodec) {missing}; it is left out"
    except (OSError, RuntimeError) as error:
        return f"NNCodec cannot start, it is left out: {(str(error).splitlines() or [''])[0]}"
    return ""


def nncodec_file(source: ModelSource, qp: int) -> tuple[int, dict[str, np.ndarray]]:
    """Return the bytes of NNCodec's bitstream, graph and other tensors included, and what it decodes to.

    float32 tensors go through NNCodec with its defaults (dependent quantization, DeepCABAC); others and the
    graph are charged as the other baselines charge them.

    Raises
    ------
    ConversionError
        If NNCodec writes no bitstream.
    ImportError
        If it is not installed; see :func:`nncodec_missing`.

    Source : ISO/IEC 15938-17; Becking et al. 2023, "NNCodec: an open source software implementation of the
    neural network coding ISO/IEC standard"
    """
    codec = import_module(_PACKAGE)
    coded = {name: array for name, array in source.tensors.items() if array.dtype == np.float32}
    others = b"".join(storage_bits(a).tobytes() for n, a in source.tensors.items() if n not in coded)
    with tempfile.TemporaryDirectory() as folder:
        codec.encode(
            {name: np.ascontiguousarray(array) for name, array in coded.items()},
            args={"qp": qp, "verbose": False, "results": folder},
        )
        written = next(Path(folder).rglob("*.nnc"), None)
        if written is None:
            raise ConversionError("NNCodec wrote no bitstream")
        bitstream = written.read_bytes()
    found = codec.decode(bytearray(bitstream))
    decoded = {
        name: np.asarray(found[name], dtype=np.float32).reshape(array.shape) if name in coded else array
        for name, array in source.tensors.items()
    }
    n_bytes = len(bitstream) + len(zlib.compress(source.graph or b"", 9))
    return n_bytes + (len(lzma.compress(others, preset=9)) if others else 0), decoded
