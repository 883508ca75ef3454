"""Golden files: small, valid, and together every layout, codec, mapping, value rule and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

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
    Layout,
    RawTensor,
    Scales,
    ViewSource,
    ViewTensor,
)
from nqformat.escape import EscapeMapping
from nqformat.grouping import GroupMapping
from nqformat.hybrid import HybridMapping
from nqformat.streams import Codec, StreamKind
from nqformat.tensor_records import Block, CodebookValues, PackedFields, Partition, TensorRecord

from .assembly import BYTES, GAPS, Coding, FileBuilder, position_numbers, quantized_file

VECTORS = Path(__file__).parents[1] / "spec" / "vectors" / "valid"
MOST_BYTES = 2048
MOST_PLAIN_BYTES = 1 << 20
FLOATS = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64)
# MatMul with the tensor "weight", then an If whose branches are Identity and Constant
ONNX_GRAPH = bytes.fromhex(
    "08083aed010a160a01780a0677656967687412016122064d61744d756c0a97010a0163120179220249662a4d0a0b656c"
    "73655f6272616e6368323b0a251201622208436f6e7374616e742a160a0576616c75652a0a080210073a0203044200a0"
    "0104120165620f0a0162120a0a08080712040a020802a001052a3c0a0b7468656e5f6272616e6368322a0a100a016112"
    "016222084964656e7469747912017462130a0162120e0a0c080112080a0208010a02080ea001051201675a130a017812"
    "0e0a0c080112080a0208010a02080c5a0b0a016312060a040809120062140a0179120f0a0d080112090a0312016e0a02"
    "080e42040a001011"
)


@cache
def golden_files() -> dict[str, bytes]:
    """Return the golden files by name, in a fixed order, each of at most 2 KiB and 1 MiB decoded."""
    found: dict[str, bytes] = {}
    for path in sorted(VECTORS.glob("*.nqz")):
        content = path.read_bytes()
        with nqformat.from_bytes(content) as file:
            if sum(file.info(name).plain_bytes for name in file) <= MOST_PLAIN_BYTES:
                found[path.stem] = content
    for name, content in (*_combinations(), *_partitioned(), *_written()):
        found[name] = content
    return {name: content for name, content in found.items() if len(content) <= MOST_BYTES}


def levels(n_entries: int, stored_as: DType = DType.FLOAT16) -> Codebook:
    """Codebook of ascending values without zero."""
    return Codebook(values=(np.arange(n_entries, dtype=np.float32) + 1) / 4, stored_as=stored_as)


def skewed(rng: np.random.Generator, shape: tuple[int, ...], n_levels: int, density: float) -> np.ndarray:
    """Small numbers more often than large ones; 0 with probability ``1 - density``."""
    numbers = 1 + np.minimum(rng.geometric(0.4, size=shape) - 1, n_levels - 1)
    return np.where(rng.random(shape) < density, numbers, 0).astype(np.int64)


def _combinations() -> Iterator[tuple[str, bytes]]:
    """Every layout with every codec and mapping, dtypes and scans in turn."""
    rng = np.random.default_rng(11)
    mappings = (BYTES, GroupMapping(3, 6), HybridMapping(2, 1), EscapeMapping(2, 3, 4))
    number = 0
    for layout, density in ((Layout.DENSE, 1.0), (Layout.SPARSE, 0.15), (Layout.MASK, 0.5)):
        for codec in (Codec.STORED, Codec.HUFFMAN, Codec.TANS):
            for mapping in mappings:
                number += 1
                k = skewed(rng, (9, 8) if number % 3 else (2, 5, 6), 6, density)
                k = np.maximum(k - 1, 0) if layout is Layout.DENSE else k
                container = quantized_file(
                    k,
                    layout=layout,
                    values=Coding(codec=codec, mapping=mapping),
                    positions=Coding(codec=codec, mapping=GAPS if layout is Layout.SPARSE else BYTES),
                    dtype=FLOATS[number % 4],
                    codebook=levels(6, FLOATS[number % 3]) if number % 2 else None,
                    offset=0.5,
                    step=0.25,
                    column_scan=number % 5 == 0,
                )
                container.deflated = number % 4 == 3
                yield f"{layout.name}-{codec.name}-{number}".lower(), container.to_bytes()
        for shape in ((0, 3), (4, 5)):
            nothing = quantized_file(
                np.zeros(shape, np.int64) + (layout is Layout.DENSE),
                layout=layout,
                values=Coding(),
                positions=Coding(),
                codebook=levels(2),
            )
            yield f"{layout.name}-of-nothing-{shape[0]}".lower(), nothing.to_bytes()


def _partitioned() -> Iterator[tuple[str, bytes]]:
    """Line classes and alive lists, by rows and by columns, in every layout."""
    rng = np.random.default_rng(14)
    for layout in (Layout.DENSE, Layout.SPARSE, Layout.MASK):
        for columns in (False, True):
            yield f"partition-{layout.name}-{columns}".lower(), _partition(rng, layout, columns)


def _partition(rng: np.random.Generator, layout: Layout, columns: bool) -> bytes:
    """Eight lines in three classes, of which one stores nothing; eight of ten places are alive."""
    classes = np.array([0, 1, 2, 0, 1, 2, 0, 0], dtype=np.uint8)
    alive = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1, 1], dtype=np.uint8)
    n_alive = int(alive.sum())
    builder = FileBuilder()
    class_stream = builder.add_stream(StreamKind.CLASSES, Coding(mapping=GroupMapping(4, 3)), classes)
    alive_stream = builder.add_stream(StreamKind.CLASSES, Coding(mapping=GroupMapping(8, 2)), alive)
    blocks = []
    for number in range(3):
        n_lines = int((classes == number).sum())
        places = np.arange(n_lines * n_alive)
        stored = places if layout is Layout.DENSE else places[places % (3 + number) == number]
        blocks.append(_block(rng, builder, layout, n_lines, stored if number < 2 else places[:0]))
    partition = Partition(
        n_lines=8,
        n_cross=10,
        class_stream=class_stream,
        alive_stream=alive_stream,
        n_alive=n_alive,
        blocks=tuple(blocks),
    )
    fields = PackedFields(
        rule=CodebookValues(codebook=builder.add_codebook(levels(6))),
        column_scan=columns,
        n_stored=sum(block.n_stored for block in blocks),
        value_stream=-1,
        partition=partition,
    )
    shape = (10, 8) if columns else (8, 2, 5)
    builder.add_tensor(
        TensorRecord(name="lines", dtype=DType.FLOAT32, shape=shape, layout=layout, fields=fields)
    )
    return builder.container().to_bytes()


def _block(
    rng: np.random.Generator, builder: FileBuilder, layout: Layout, n_lines: int, stored: np.ndarray
) -> Block:
    """Store one block of a partition, whose lines have eight places."""
    if stored.size == 0:
        return Block(n_lines=n_lines, n_stored=0)
    numbers = rng.integers(0, 6, stored.size).astype(np.uint8)
    value_stream = builder.add_stream(StreamKind.VALUES, Coding(mapping=GroupMapping(2, 6)), numbers)
    position_stream = None
    if layout is Layout.SPARSE:
        gaps = position_numbers(stored, 8 * n_lines, layout)
        position_stream = builder.add_stream(StreamKind.GAPS, Coding(mapping=GAPS), gaps)
    elif layout is Layout.MASK:
        mask = position_numbers(stored, 8 * n_lines, layout).astype(np.uint8)
        position_stream = builder.add_stream(StreamKind.MASK, Coding(), mask)
    return Block(
        n_lines=n_lines, n_stored=stored.size, value_stream=value_stream, position_stream=position_stream
    )


def _long() -> Iterator[tuple[str, bytes]]:
    """Slices of several chunks, chunks of four sub-streams, several pages."""
    rng = np.random.default_rng(12)
    one = np.zeros((5, 4000), dtype=np.int64)
    one[:, ::97] = 1 + (np.arange(42) % 11 == 3)
    coding = Coding(mapping=GroupMapping(4, 3), chunk_log2=14)
    yield (
        "four-streams",
        quantized_file(one, layout=Layout.DENSE, values=coding, codebook=levels(3)).to_bytes(),
    )
    coding = Coding(codec=Codec.TANS, mapping=GroupMapping(4, 3), chunk_log2=14)
    yield "four-tans", quantized_file(one, layout=Layout.DENSE, values=coding, codebook=levels(3)).to_bytes()
    sparse = np.zeros((130, 130), dtype=np.int64)
    sparse[::1, :127] = 1
    yield (
        "gap-chunks",
        quantized_file(
            sparse,
            layout=Layout.SPARSE,
            values=Coding(chunk_log2=14),
            positions=Coding(chunk_log2=14, mapping=GAPS),
            codebook=levels(2),
        ).to_bytes(),
    )
    pages = quantized_file(
        rng.integers(0, 200, (25, 70)),
        layout=Layout.DENSE,
        values=Coding(codec=Codec.STORED),
        codebook=levels(200),
    )
    pages.page_log2 = 12
    yield "pages", pages.to_bytes()


def _tensors() -> dict[str, Any]:
    """Tensors for the writer to store as it likes."""
    rng = np.random.default_rng(13)
    book = Codebook(values=np.array([0, 0.5, -1, 2, 3], np.float32), stored_as=DType.FLOAT16)
    tensors: dict[str, Any] = {
        "weight": CodebookTensor(indices=skewed(rng, (12, 14), 4, 0.1).astype(np.uint8), codebook=book),
        "sibling": CodebookTensor(indices=skewed(rng, (6, 7), 4, 0.1).astype(np.uint8), codebook=book),
        "int8": AffineTensor(k=rng.integers(-20, 20, 30).astype(np.int32), step=1.0, dtype=DType.INT8),
        "wide": AffineTensor(k=rng.integers(-900, 900, (5, 6)).astype(np.int32), step=0.5, offset=1.5),
        "brain": RawTensor(bits=rng.integers(0, 1 << 16, size=9).astype("<u2"), dtype=DType.BFLOAT16),
        "planes": (rng.normal(size=200) * 0.02).astype(np.float32),
        "double": rng.normal(size=3),
        "half": rng.normal(size=(2, 3)).astype(np.float16),
        "flags": np.array([True, False, True]),
        "constant": np.full((3, 4), 2.5),
        "scalar": np.float32(3.0),
        "empty": np.zeros((0, 5), dtype=np.float32),
        "view": ViewTensor(
            sources=(ViewSource(name="weight", start=2, stop=8),), permutation=(1, 0), shape=(14, 6)
        ),
    }
    scales = rng.uniform(0.5, 2, size=7).astype(np.float32)
    halves = Scales(values=scales[:3].astype(np.float16).astype(np.float32), span=5, stored_as=DType.FLOAT16)
    vectors = GroupedCodebook(values=rng.normal(size=(3, 5, 2)).astype(np.float32))
    signs = rng.integers(-3, 4, (7, 9)).astype(np.int32)
    tensors |= {
        "scaled": AffineTensor(k=signs, step=1.0, scales=Scales.along_axis(scales, (7, 9))),
        "scaled_sparse": CodebookTensor(
            indices=skewed(rng, (7, 12), 4, 0.2).astype(np.uint8), codebook=book, scales=halves
        ),
        "vectors": GroupedTensor(
            indices=rng.integers(0, 5, 60).astype(np.uint8), shape=(10, 12), codebook=vectors, span=20
        ),
        "hashed": HashedTensor(source="planes", shape=(6, 5), seed=99),
        "signed": HashedTensor(source="half", shape=(3, 7), seed=7, signs=True),
        "pruned": np.where(rng.random((20, 30)) < 0.06, rng.normal(size=(20, 30)), 0).astype(np.float32),
        "rare": np.arange(900) % 400 == 9,
    }
    tensors |= {
        f"int.{name}": np.arange(4, dtype=name) for name in ("u1", "i2", "u2", "i4", "u4", "i8", "u8")
    }
    return tensors


def _written() -> Iterator[tuple[str, bytes]]:
    """Files of the writer: each tensor alone, and all together with graph and metadata."""
    tensors = _tensors()
    for i, (name, tensor) in enumerate(tensors.items()):
        source = {"view": "weight", "hashed": "planes", "signed": "half"}.get(name)
        alone = {name: tensor} if source is None else {source: tensors[source], name: tensor}
        yield f"alone-{name}", nqformat.save(alone, edge=bool(i % 2))
    yield "all", nqformat.save(tensors, graph=ONNX_GRAPH, metadata={"method": "none", "seed": [1, None, 0.5]})
    yield "all-edge", nqformat.save(tensors, graph=ONNX_GRAPH, metadata={"a": {"b": "c"}}, edge=True)
    yield "nothing", nqformat.save({}, metadata={"method": "nothing"})
    large = np.arange(1100, dtype=np.float32)
    yield "aligned", nqformat.save({"scalar": np.ones((), np.float32), "large": large[:350]})
    yield from _long()
