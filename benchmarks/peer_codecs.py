"""Other coders on the same symbols: zstd, zlib, constriction, NNCodec and, for raw floats, ZipNN.

constriction and zipnn are optional packages (extra ``bench``); NNCodec runs in the Python that
NQZ_PEERS_PYTHON names, with the folder NQZ_PEERS on its path. A line is printed for each that is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

_WORKER = Path(__file__).parent / "nncodec_worker.py"
_BYTES_OF_A_PROBABILITY = 2
_told: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Coder:
    """Bytes that a coder needs for some content, and calls that code and decode it."""

    n_bytes: int
    encode: Callable[[], Any]
    decode: Callable[[], Any]


def optional(name: str) -> Any:
    """A package, or None after a printed line."""
    try:
        return import_module(name)
    except ImportError:
        say_once(f"{name} is not installed: left out")
        return None


def say_once(line: str) -> None:
    if line not in _told:
        _told.add(line)
        print(line)


def index_coders(streams: Sequence[np.ndarray], zstd_levels: Sequence[int]) -> dict[str, Coder]:
    """Every coder on streams of uint8 symbols: byte coders on all together, ANS with a model for each."""
    content = b"".join(stream.tobytes() for stream in streams)
    coders = {**zstd_coders(content, zstd_levels), "zlib": _zlib(content)}
    ans = _constriction(streams)
    return coders if ans is None else {**coders, "constriction": ans}


def zstd_coders(content: bytes, zstd_levels: Sequence[int]) -> dict[str, Coder]:
    """Every level of zstd on the same bytes."""
    coders = {}
    for level in zstd_levels:
        compressor, decompressor = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
        packed = compressor.compress(content)
        coders[f"zstd -{level}"] = Coder(
            n_bytes=len(packed),
            encode=partial(compressor.compress, content),
            decode=partial(decompressor.decompress, packed),
        )
    return coders


def _zlib(content: bytes) -> Coder:
    packed = zlib.compress(content, 6)
    return Coder(
        n_bytes=len(packed),
        encode=partial(zlib.compress, content, 6),
        decode=partial(zlib.decompress, packed),
    )


def _constriction(streams: Sequence[np.ndarray]) -> Coder | None:
    """Constriction's ANS coder with the symbols' own frequencies, two bytes charged for each."""
    constriction = optional("constriction")
    if constriction is None:
        return None
    coder_of = constriction.stream.stack.AnsCoder
    models, symbols, n_table_bytes = [], [], 0
    for stream in streams:
        counts = np.bincount(stream)
        n_table_bytes += _BYTES_OF_A_PROBABILITY * counts.size
        shares = np.maximum(counts, 0.5) / stream.size
        model = constriction.stream.model.Categorical(shares, perfect=False)
        models.append(model if counts.size > 1 else None)
        symbols.append(stream.astype(np.int32))

    def encode() -> list[np.ndarray]:
        packed = []
        for stream, model in zip(symbols, models, strict=True):
            coder = coder_of()
            if model is not None:
                coder.encode_reverse(stream, model)
            packed.append(coder.get_compressed())
        return packed

    packed = encode()

    def decode() -> list[np.ndarray]:
        return [
            np.zeros(stream.size, np.int32) if model is None else coder_of(words).decode(model, stream.size)
            for words, model, stream in zip(packed, models, symbols, strict=True)
        ]

    assert all(map(np.array_equal, decode(), symbols))
    return Coder(n_bytes=n_table_bytes + sum(words.nbytes for words in packed), encode=encode, decode=decode)


def zipnn_coder(content: bytes, dtype: str) -> Coder | None:
    """ZipNN with one thread on the bytes of a float tensor; None if it is not installed."""
    zipnn = optional("zipnn")
    if zipnn is None:
        return None
    coder = zipnn.ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    packed = coder.compress(bytearray(content))
    assert bytes(coder.decompress(packed)) == content
    return Coder(
        n_bytes=len(packed),
        encode=lambda: coder.compress(bytearray(content)),
        decode=lambda: coder.decompress(packed),
    )


def nncodec(cases: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Bytes and CPU seconds of NNCodec for integer tensors, which it codes losslessly.

    Parameters
    ----------
    cases : mapping of case name to (mapping of tensor name to ndarray of int32)

    Returns
    -------
    {case: {"bytes": int, "encode": {"median", "best", "worst"}, "decode": the same}}; empty without NNCodec
    """
    python = os.environ.get("NQZ_PEERS_PYTHON")
    if not python:
        say_once("NNCodec is left out: set NQZ_PEERS_PYTHON (and NQZ_PEERS)")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, tensors in enumerate(cases.values()):
            paths.append(f"{folder}/{number}.npz")
            np.savez(paths[-1], **tensors)
        done = subprocess.run([python, str(_WORKER), *paths], capture_output=True, text=True, check=False)
    if done.returncode:
        say_once(f"NNCodec is left out: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
        return {}
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))
