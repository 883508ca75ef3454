"""Two readers written apart, nqformat and spec/reference_reader.py, give the same verdict on any bytes."""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nqformat
import reference_reader as reference
from nqformat import AffineTensor, Codebook, CodebookTensor, DType, RawTensor, ViewSource, ViewTensor
from vector_assembly import Record, assembled, record, sealed, tensor_body, varint

ROOT = Path(__file__).parents[3]
READER = ROOT / "spec" / "reference_reader.py"
VECTORS = sorted((ROOT / "spec" / "vectors" / "valid").glob("*.nqz"))
N_MUTATED = 800
Rng = np.random.Generator


# Verdicts -------------------------------------------------------------------------------------------------


def outcome(read: Callable[[], Any]) -> Any:
    """What an item holds, or the name of the error class that refuses it."""
    try:
        found = read()
    except (reference.NqzError, nqformat.NqError) as error:
        return type(error).__name__.removesuffix("Error")
    if isinstance(found, np.ndarray):  # bfloat16 may be handed out as uint16
        return found.shape, found.dtype.itemsize, found.tobytes()
    return repr(found)


def nqformat_verdict(content: bytes) -> dict[str, Any]:
    """Outcome of each item of a file, or of the whole file."""
    limits = nqformat.Limits(materialised_bytes=16 << 20)
    opened: list[nqformat.NqzFile] = []
    refusal = outcome(lambda: opened.append(nqformat.from_bytes(content, limits=limits, threads=1)))
    if not opened:
        return {"file": refusal}
    with opened[0] as file:
        said = {"graph": outcome(file.graph), "metadata": outcome(file.metadata)}
        return said | {f"tensor {name}": outcome(lambda name=name: file.get_tensor(name)) for name in file}


def reference_verdict(content: bytes, beyond_limits: set[str]) -> dict[str, Any]:
    """Outcome of each item; tensors beyond the limits of the other reader are left alone."""
    opened: list[Any] = []
    refusal = outcome(
        lambda: opened.append(reference.NqzFile(content, reference.Limits(array_bytes=1 << 40)))
    )
    if not opened:
        return {"file": refusal}
    file = opened[0]
    said = {"graph": outcome(file.graph), "metadata": outcome(file.metadata)}
    for tensor in file.tensors:
        key = f"tensor {tensor.head.name}"
        skip = key in beyond_limits
        said[key] = "LimitExceeded" if skip else outcome(lambda tensor=tensor: file.decode(tensor))
    return said


def both_verdicts(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    first = nqformat_verdict(content)
    return first, reference_verdict(content, {key for key, said in first.items() if said == "LimitExceeded"})


# Files ----------------------------------------------------------------------------------------------------


def levels(n_entries: int, stored_as: DType) -> Codebook:
    return Codebook(
        values=np.arange(n_entries, dtype=np.float32) / 8 - 2 * (n_entries > 9), stored_as=stored_as
    )


def indices(rng: Rng, shape: tuple[int, ...], density: float, n_entries: int) -> np.ndarray:
    numbers = 1 + np.minimum(rng.geometric(0.3, size=shape) - 1, n_entries - 2)
    return np.where(rng.random(shape) < density, numbers, 0).astype(
        np.uint16 if n_entries > 256 else np.uint8
    )


def quantized_tensors(seed: int) -> dict[str, Any]:
    """Sparse, mask and dense tensors of several densities, codebooks, types and shapes."""
    rng = np.random.default_rng(seed)
    books = [levels(4, DType.FLOAT16), levels(30, DType.BFLOAT16), levels(300, DType.FLOAT32)]
    dtypes = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64]
    shapes: list[tuple[int, ...]] = [(18, 25), (7,), (3, 5, 11), (1, 60), (60, 1), (0, 3), (), (30, 20)]
    tensors: dict[str, Any] = {}
    for i, shape in enumerate(shapes):
        book = books[(i + seed) % 3]
        n_entries = book.values.size
        density = (0.02, 0.1, 0.45, 1.0)[(i // 2 + seed) % 4]
        numbers = indices(rng, shape, density, n_entries)
        tensors[f"book.{i}"] = CodebookTensor(indices=numbers, codebook=book, dtype=dtypes[i % 4])
        k = (indices(rng, shape, density, 40).astype(np.int32) - 12 * (i % 3 == 0)) * (3 if i % 2 else 1)
        tensors[f"affine.{i}"] = AffineTensor(
            k=k, step=0.375, offset=0.0 if i % 2 else 1.5, dtype=dtypes[-i % 4]
        )
    tensors["integers"] = AffineTensor(
        k=rng.integers(-90, 90, (9, 30)).astype(np.int32), step=1.0, dtype=DType.INT8
    )
    rows = (rng.random((60, 64)) < rng.choice([0.0, 0.05, 0.5], 60)[:, None]) & (rng.random(64) < 0.6)
    lined = np.where(rows, indices(rng, rows.shape, 1.0, 4), 0).astype(np.uint8)
    tensors["lines"] = CodebookTensor(indices=lined, codebook=books[0])
    tensors["columns"] = CodebookTensor(
        indices=np.ascontiguousarray(lined.T), codebook=levels(5, DType.FLOAT16)
    )
    tensors["view"] = ViewTensor(
        sources=(ViewSource(name="lines", start=3, stop=43), ViewSource(name="lines", start=0, stop=8)),
        permutation=(1, 0),
        shape=(64, 48),
    )
    return tensors


def raw_tensors(seed: int) -> dict[str, Any]:
    """Arrays of every element type, some of them worth coding."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {
        "bool": rng.random(40) < 0.2,
        "constant": np.full((3, 4), 2.5),
        "f": np.float32(3),
    }
    for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
        tensors[f"integer.{name}"] = rng.integers(0, 100, (5, 20)).astype(name)
    for name in ("f2", "f4", "f8"):
        tensors[f"float.{name}"] = (rng.normal(size=(16, 16)) * 0.02).astype(name)
    brain = (rng.normal(size=300) * 0.02).astype("<f4").view("<u4") >> 16
    tensors["float.brain"] = RawTensor(bits=brain.astype(np.uint16), dtype=DType.BFLOAT16)
    tensors["empty"] = np.zeros((2, 0, 4), np.int16)
    return tensors


def long_tensors() -> dict[str, Any]:
    """Slices of several chunks and chunks of four sub-streams."""
    rng = np.random.default_rng(5)
    sparse = np.zeros((700, 1000), np.uint8)
    sparse[:, ::10] = indices(rng, (700, 100), 0.97, 3)
    return {
        "sparse": CodebookTensor(indices=sparse, codebook=levels(3, DType.FLOAT16)),
        "wide": AffineTensor(k=rng.integers(-3000, 3000, 5000).astype(np.int32), step=0.5),
    }


def made_files() -> dict[str, bytes]:
    files = {path.stem: path.read_bytes() for path in VECTORS}
    for seed, edge, prefer in ((0, False, "size"), (1, True, "size"), (2, True, "speed")):
        files[f"quantized-{seed}"] = nqformat.save(quantized_tensors(seed), edge=edge, prefer=prefer)
        files[f"raw-{seed}"] = nqformat.save(
            raw_tensors(seed), graph=b"graph " * 9, metadata={"a": [1, "b"]}, edge=edge, prefer=prefer
        )
    files["by hand"] = file_by_hand()
    files["long"] = nqformat.save(long_tensors())
    return files


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return made_files()


def file_by_hand() -> bytes:
    """Masks, classes and affine values in forms that the writer seldom chooses, with extension fields."""
    half, one = (np.array([step, 0.0], "<f4").tobytes() for step in (0.5, 1.0))
    entries = np.array([0, 1, -2, 0.5], "<f2").tobytes()
    view = [2, 0, 0, 1, 0, 1, 2, 2, 1, 0]
    return assembled(
        [
            Record(7 << 3 | 2, b"unknown kind", b"skipped"),
            record(2, bytes([1, 0]), b"graph"),
            record(3, bytes([1, 2])),
            record(4, bytes([10, 1, 4, 1]), entries),
            record(5, bytes([1, 0x00, 2, 3, 0]), bytes([4, 9, 3, 4, 14])),
            record(5, bytes([3, 0x00, 1, 255, 0]), bytes([2, 0b10010001, 0b00001000])),
            record(5, bytes([2, 0x10, 0x12, 0]), bytes([4, 1, 1, 0, 4, 3, 1])),
            record(5, bytes([5, 0x01, 1, 2, 0x10, 0]), bytes([0])),
            record(6, tensor_body(4, 12, "mask", (3, 4)) + bytes([3]) + half + bytes([0, 0, 4, 0, 1])),
            record(6, tensor_body(3, 3, "sparse", (2, 7)) + bytes([1]) + one + bytes([1, 4, 0, 2, 6, 0])),
            record(6, tensor_body(2, 10, "classed", (5, 2)) + bytes([4, 0, 3, 3, 0, 0, 0, 0, 5, 0])),
            record(6, tensor_body(5, 12, "view", (2, 6)) + bytes(view)),
        ],
        deflate=False,
    )


# Changed files --------------------------------------------------------------------------------------------


def records_of(content: bytes) -> list[Record]:
    found = []
    for each in reference.read_records(*reference.read_directory(content, reference.Limits())):
        payload = each.payload.read()
        tag = each.kind << 3 | each.critical | 2 * bool(payload)
        found.append(Record(tag, bytes(each.body.left), payload))
    return found


def flipped(rng: Rng, content: bytes) -> bytes:
    """Change up to three bits or bytes."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4)) if content else 0):
        place = int(rng.integers(len(changed)))
        changed[place] = (
            changed[place] ^ 1 << int(rng.integers(8)) if rng.random() < 0.7 else int(rng.integers(256))
        )
    return bytes(changed)


def spliced(rng: Rng, content: bytes) -> bytes:
    """Leave out, repeat or insert a few bytes."""
    at, n_bytes = int(rng.integers(len(content) + 1)), int(rng.integers(1, 4))
    inserted = [b"", bytes(rng.integers(0, 256, n_bytes, dtype=np.uint8)), content[at : at + n_bytes]]
    return content[:at] + inserted[int(rng.integers(3))] + content[at + int(rng.integers(2)) * n_bytes :]


def with_extension(rng: Rng, body: bytes) -> bytes:
    content = bytes(rng.integers(0, 256, int(rng.integers(4)), dtype=np.uint8))
    return body + varint(int(rng.integers(8))) + varint(len(content)) + content


def changed_records(rng: Rng, records: list[Record]) -> list[Record]:
    """Change one or two records: bytes of the body or payload, the tag, the place."""
    out = [Record(r.tag, r.body, r.payload) for r in records]
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(out)))
        record = out[at]
        choice = int(rng.integers(12))
        if choice < 5:
            record.body = flipped(rng, record.body)
        elif choice < 7:
            record.payload = flipped(rng, record.payload)
        elif choice == 7:
            record.body = spliced(rng, record.body)
        elif choice == 8:
            record.payload = spliced(rng, record.payload)
        elif choice == 9:
            record.body = with_extension(rng, record.body)
        elif choice == 10:
            record.tag ^= int(rng.choice([1, 2, 4, 8, 16, 64, 128, 1 << 40]))
        else:
            moved = out.pop(at) if rng.random() < 0.5 else record
            out.insert(int(rng.integers(len(out) + 1)), Record(moved.tag, moved.body, moved.payload))
    return out


def changed_file(rng: Rng, content: bytes) -> bytes:
    choice = int(rng.integers(20))
    if choice == 0:
        return flipped(rng, content)
    if choice == 1:
        return content[: int(rng.integers(len(content)))]
    if choice == 2:
        head = flipped(rng, content[:28])
        return head + zlib.crc32(head).to_bytes(4, "little") + content[32:]
    if choice == 3:
        plain, body = reference.read_directory(content, reference.Limits())
        return sealed(flipped(rng, bytes(plain.left)), content[body.start :], 0x80)
    return assembled(changed_records(rng, records_of(content)), deflate=bool(rng.integers(2)))


# Tests ----------------------------------------------------------------------------------------------------


def test_both_read_every_made_file_alike(files: dict[str, bytes]) -> None:
    for name, content in files.items():
        first, second = both_verdicts(content)
        assert first == second, name
        assert not any(isinstance(said, str) and said in vars(reference) for said in first.values()), name


def test_the_file_by_hand_is_what_the_document_says() -> None:
    tensors = reference.read(file_by_hand()).tensors
    mask = np.zeros((3, 4), np.float32)
    mask[[0, 1, 1, 2], [0, 1, 2, 3]] = [0.5, 1.0, 1.5, 0.0]
    assert np.array_equal(tensors["mask"], mask)
    assert tensors["sparse"].tolist() == [[0, -1, 1, 0, 0, 0, 0], [0, -2, 0, 0, 0, 2, 0]]
    assert not tensors["classed"].any()
    assert np.array_equal(tensors["view"], mask.T.reshape(2, 6))


def test_the_made_files_use_every_layout_codec_and_mapping(files: dict[str, bytes]) -> None:
    used: Counter[str] = Counter()
    for content in files.values():
        for each in records_of(content):
            kind = each.tag >> 3
            if kind == reference.STREAM:
                used.update(
                    [f"kind {each.body[0]}", f"codec {each.body[1] % 16}", f"map {each.body[1] >> 4}"]
                )
            elif kind == reference.TENSOR:
                used[f"layout {each.body[0] % 16}"] += 1
    wanted = {f"layout {i}" for i in range(8)} | {f"kind {i}" for i in range(1, 6)}
    assert wanted | {f"codec {i}" for i in range(3)} | {f"map {i}" for i in range(3)} <= set(used)


@pytest.mark.parametrize("n_mutated", [N_MUTATED, pytest.param(5000, marks=pytest.mark.slow)])
def test_both_give_the_same_verdict_on_changed_files(files: dict[str, bytes], n_mutated: int) -> None:
    rng = np.random.default_rng(n_mutated)
    whole = {name: content for name, content in files.items() if name != "long" and len(content) > 32}
    quick = [content for name, content in whole.items() if name == "by hand" or name[:3].isdigit()]
    large = [content for content in whole.values() if content not in quick]
    verdicts: Counter[str] = Counter()
    n_differing = 0
    for _ in range(n_mutated):
        sources = quick if rng.random() < 0.85 else large
        content = changed_file(rng, sources[int(rng.integers(len(sources)))])
        first, second = both_verdicts(content)
        differing = {key for key in first | second if first.get(key) != second.get(key)}
        # both refuse a tensor; which of several faults and unknown items is reported may differ
        assert "file" not in differing, content.hex()
        either = {"Corrupt", "Truncated", "UnsupportedFeature"}
        assert all({first.get(key), second.get(key)} <= either for key in differing), content.hex()
        n_differing += bool(differing)
        verdicts[first.get("file", "read")] += 1
    assert n_differing <= max(5, n_mutated // 200)
    assert min(verdicts[name] for name in ("read", "Corrupt", "Truncated", "UnsupportedFeature")) > 10


def test_every_prefix_is_truncated() -> None:
    content = VECTORS[0].read_bytes()
    for n_bytes in range(len(content)):
        with pytest.raises(reference.Truncated):
            reference.read(content[:n_bytes])


def test_limits_are_kept() -> None:
    content = VECTORS[0].read_bytes()
    for limits in ({"array_bytes": 2575}, {"directory_bytes": 81}, {"metadata_bytes": 18}, {"tensors": 1}):
        with pytest.raises(reference.LimitExceeded):
            reference.read(content, reference.Limits(**limits))
    assert len(reference.read(content, reference.Limits(array_bytes=2576)).tensors) == 2


def test_an_unknown_item_leaves_the_others_readable() -> None:
    records = records_of(file_by_hand())
    records[10].body += bytes([7, 0])
    file = reference.read(assembled(records, deflate=True))
    assert list(file.unsupported) == ["classed"] and list(file.tensors) == ["mask", "sparse", "view"]
    assert file.graph == b"graph"


def test_the_command_lists_tensors_or_names_the_error(tmp_path: Path) -> None:
    listed = subprocess.run([sys.executable, READER, VECTORS[0]], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[1] == "fc.bias  [4]  float32  0d1a3611"
    path = tmp_path / "cut.nqz"
    path.write_bytes(VECTORS[0].read_bytes()[:99])
    refused = subprocess.run([sys.executable, READER, path], capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stderr.startswith("Truncated: ")


def with_record(at: int, changed: Record) -> list[Record]:
    records = records_of(file_by_hand())
    records[at] = changed
    return records


def test_faults_of_payloads_concern_what_takes_from_them() -> None:
    for at, payload, damaged in (
        (4, b"", {"mask", "sparse", "view"}),  # more chunks than bytes
        (5, bytes([2, 0b10010001, 0b00011000]), {"mask", "view"}),  # a bit beyond the elements
        (6, bytes([4, 1, 1, 0, 4, 3, 3]), {"sparse"}),  # padding of extra bits
        (7, bytes([1, 0]), {"classed"}),  # a single symbol takes no bits
    ):
        records = records_of(file_by_hand())
        records[at] = record(5, records[at].body, payload)
        for said in both_verdicts(assembled(records, deflate=True)):
            assert {key for key in said if said[key] == "Corrupt"} == {f"tensor {name}" for name in damaged}


def test_an_empty_payload_counts_as_none() -> None:
    records = with_record(2, Record(3 << 3 | 3, bytes([1, 2]), b""))
    first, second = both_verdicts(assembled(records, deflate=False))
    assert first == second and "file" not in first
