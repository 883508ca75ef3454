"""Write the conformance files from their descriptions: ``python spec/vectors/make_vectors.py``.

Files of a released format version are never written again; this script only adds what is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nqformat
from nqformat import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    DType,
    GroupedCodebook,
    GroupedTensor,
    HashedTensor,
    RawTensor,
    Scales,
)

FOLDER = Path(__file__).parent


def worked_example() -> bytes:
    """Return the file of spec section 12."""
    steps = [3, 9, 5, 14, 8, 3, 21, 6, 4, 9]
    levels = [1, 1, 2, 1, 3, 1, 2, 1]
    indices = np.zeros(640, dtype=np.uint8)
    position = steps[0]
    count = 0
    while position < indices.size:
        indices[position] = levels[count % 8]
        count += 1
        position += steps[count % 10] + (count * 7) % 5
    book = Codebook(values=np.array([0, 0.5, -1.5, 2.25], dtype=np.float32), stored_as=DType.FLOAT16)
    tensors = {
        "fc.weight": CodebookTensor(indices=indices.reshape(16, 40), codebook=book),
        "fc.bias": np.array([0.25, -1, 2, 0.5], dtype=np.float32),
    }
    return nqformat.save(tensors, metadata={"method": "kmeans"}, edge=True)


def _levels(n_entries: int) -> Codebook:
    return Codebook(values=np.arange(n_entries, dtype=np.float32) / 8, stored_as=DType.FLOAT16)


def tans_codes() -> bytes:
    """Return a file of two matrices whose entropy lies well below what a prefix code takes."""
    numbers = np.arange(1800)
    skewed = np.where(numbers * 7 % 11 == 0, 1 + numbers % 3, 0) + 5 * (numbers % 97 == 1)
    wide = (numbers * numbers) % 61 * ((numbers % 5) == 0) // 2
    tensors = {
        "skewed": CodebookTensor(indices=(skewed + 1).astype(np.uint8), codebook=_levels(12)),
        "wide": CodebookTensor(indices=(wide + 1).astype(np.uint8), codebook=_levels(64)),
    }
    return nqformat.save(tensors, edge=True)


def line_classes() -> bytes:
    """Return a file of a matrix with thin, thick and empty rows and with empty columns, and its transpose."""
    rng = np.random.default_rng(7)
    density = np.choose(rng.integers(0, 3, 120), [0.0, 0.04, 0.4])
    kept = (rng.random((120, 160)) < density[:, None]) & (rng.random(160) < 0.5)
    indices = np.where(kept, rng.integers(1, 4, kept.shape), 0).astype(np.uint8)
    tensors = {
        "rows": CodebookTensor(indices=indices, codebook=_levels(4)),
        "columns": CodebookTensor(indices=np.ascontiguousarray(indices.T), codebook=_levels(5)),
    }
    return nqformat.save(tensors, edge=True)


def escaped_groups() -> bytes:
    """Return a file of neighbouring levels that resemble each other, with rare far ones."""
    numbers = np.arange(2400)
    near = (np.abs(numbers % 24 - 12) + numbers // 24 % 2).astype(np.uint8)
    indices = np.where(numbers % 71 == 5, 14 + numbers % 11, near).astype(np.uint8)
    return nqformat.save({"levels": CodebookTensor(indices=indices, codebook=_levels(25))}, edge=True)


def scaled_channels() -> bytes:
    """Return a file of steps by output channel, of blocks of a row, and of scaled codebook entries."""
    numbers = np.arange(40 * 24)
    k = ((numbers * 37 % 19 - 9) // (1 + numbers % 3)).astype(np.int32).reshape(40, 24)
    thin = np.where(numbers.reshape(40, 24) % 7 == 3, k, 0).astype(np.int32)
    steps = np.ldexp(1 + np.arange(40) % 8 / 8, -4 - np.arange(40) % 3).astype(np.float32)
    rows = Scales.along_axis(steps, k.shape, stored_as=DType.BFLOAT16)
    blocks = Scales(values=np.resize(steps, 120) + np.float32(1) / 3, span=8)
    columns = Scales.along_axis(steps[:24], k.shape, axis=1, stored_as=DType.FLOAT16)
    indices = (numbers * 5 % 4).astype(np.uint8).reshape(40, 24)
    tensors = {
        "rows": AffineTensor(k=k, step=1.0, scales=rows),
        "sparse": AffineTensor(k=thin, step=0.5, scales=blocks),
        "half": CodebookTensor(indices=indices, codebook=_levels(4), dtype=DType.FLOAT16, scales=columns),
        "example": AffineTensor(
            k=np.array([[1, -2, 3], [4, 0, -1]], dtype=np.int32),
            step=1.0,
            scales=Scales(values=np.array([0.5, 0.25], dtype=np.float32), span=3),
        ),
    }
    return nqformat.save(tensors, edge=True)


def grouped_codebooks() -> bytes:
    """Return a file of codebooks by channel, of vectors, of both, and of the specification's example."""
    numbers = np.arange(24 * 30)
    by_channel = GroupedCodebook(
        values=((np.arange(24)[:, None] % 5 - 2) + np.arange(6) / 4).astype(np.float32)[:, :, None],
        stored_as=DType.FLOAT16,
    )
    vectors = np.zeros((1, 9, 4), dtype=np.float32)
    vectors[0, 1:] = (np.arange(32) * 11 % 17 - 8).reshape(8, 4) / 8
    places = np.concatenate([vectors, -2 * vectors, vectors / 4])[:, :, :3]
    example = np.array([[[1, 2], [3, 4]], [[10, 20], [30, 40]]], dtype=np.float32)
    rare = np.where(numbers[:180] * 13 % 7 == 2, 1 + numbers[:180] % 8, 0).astype(np.uint8)
    tensors = {
        "channels": GroupedTensor(
            indices=(numbers * 7 % 6 * (numbers % 3 > 0)).astype(np.uint8),
            shape=(24, 30),
            codebook=by_channel,
            span=30,
        ),
        "vectors": GroupedTensor(
            indices=rare,
            shape=(24, 30),
            codebook=GroupedCodebook(values=vectors, stored_as=DType.BFLOAT16),
            column_scan=True,
        ),
        "places": GroupedTensor(
            indices=(numbers[:34] % 9).astype(np.uint8),
            shape=(10, 10),
            codebook=GroupedCodebook(values=np.ascontiguousarray(places)),
            dtype=DType.FLOAT16,
        ),
        "example": GroupedTensor(
            indices=np.array([1, 0, 0, 1], dtype=np.uint8),
            shape=(2, 4),
            codebook=GroupedCodebook(values=example),
        ),
    }
    return nqformat.save(tensors, edge=True)


def hashed_matrix() -> bytes:
    """Return a file of two hashed matrices, one with signs, and the values they share."""
    values = (np.arange(40, dtype=np.float32) - 17) / 16
    tensors = {
        "values": values,
        "plain": HashedTensor(source="values", shape=(12, 10), seed=7, signs=False),
        "signed": HashedTensor(source="values", shape=(5, 6, 7), seed=0xDEADBEEF),
    }
    return nqformat.save(tensors, edge=True)


def preset_dictionary() -> bytes:
    """Return a file whose directory, graph and metadata are deflated behind the preset dictionary."""
    tensors = {
        f"fc{i}.{part}": np.full(4 * i, i, np.float32) for i in range(1, 7) for part in ("weight", "bias")
    }
    graph = b"".join(b'\x12\x01%c"\x04Gemm*\r\n\x06transB\x18\x01\xa0\x01\x02' % (97 + i) for i in range(5))
    return nqformat.save(tensors, graph=graph, metadata={"method": "kmeans", "seed": 1})


def raw_sparse() -> bytes:
    """Return a file of pruned float16, bfloat16 and int32 arrays with their own bits."""
    numbers = np.arange(600)
    kept = numbers * 13 % 29 < 4
    weights = np.where(kept, np.sin(numbers).round(2), 0).astype(np.float32)
    weights[numbers % 200 == 7] = -0.0
    brain = np.where(kept, 0x3F80 + numbers % 90, 0).astype(np.uint16)[:400]
    tensors = {
        "weights": weights.reshape(20, 30).astype(np.float16),
        "brain": RawTensor(bits=brain.reshape(4, 100), dtype=DType.BFLOAT16),
        "numbers": np.where(numbers % 17 == 3, numbers * numbers, 0).astype(np.int32),
    }
    return nqformat.save(tensors, edge=True)


VALID = {
    "001-worked-example": worked_example,
    "002-tans": tans_codes,
    "003-line-classes": line_classes,
    "004-escaped-groups": escaped_groups,
    "005-scales": scaled_channels,
    "006-grouped-codebooks": grouped_codebooks,
    "007-hashed": hashed_matrix,
    "008-preset-dictionary": preset_dictionary,
    "009-raw-sparse": raw_sparse,
}


def main() -> None:
    """Write the files that do not exist yet."""
    for name, make in VALID.items():
        path = FOLDER / "valid" / f"{name}.nqz"
        if not path.exists():
            path.write_bytes(make())
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
