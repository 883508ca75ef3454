"""The specification's worked example is a real file, byte for byte."""

from __future__ import annotations

import importlib.util
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

import nqformat
from nqformat.deflate import deflate, inflate
from nqformat.preset_dictionary import PRESET_DICTIONARY

ROOT = Path(__file__).parents[3]
SPEC = ROOT / "spec" / "nqz.md"
EXAMPLE = ROOT / "spec" / "vectors" / "valid" / "001-worked-example.nqz"


def section(number: int) -> str:
    text = SPEC.read_text()
    return text[text.index(f"\n## {number}. ") : text.index(f"\n## {number + 1}. ")]


def dump() -> bytes:
    lines = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)$", section(12), re.MULTILINE)
    assert [int(offset, 16) for offset, _ in lines] == list(range(0, 16 * len(lines), 16))
    return bytes.fromhex("".join(content for _, content in lines))


def rows() -> list[tuple[int, int, str]]:
    found = re.findall(r"^\| (0x[0-9a-f]+) \| (\d+) \| ([0-9a-f. ]+) \|", section(12), re.MULTILINE)
    return [(int(start, 16), int(length), contents) for start, length, contents in found]


def test_the_dump_is_the_vector() -> None:
    assert dump() == EXAMPLE.read_bytes()


def test_the_table_explains_every_byte_with_its_contents() -> None:
    content = dump()
    position = 0
    for start, length, contents in rows():
        assert start == position
        head, _, tail = contents.partition(" ... ")
        shown = bytes.fromhex(head)
        assert content[start : start + len(shown)] == shown
        if tail:
            assert content[: start + length].endswith(bytes.fromhex(tail))
        else:
            assert len(shown) == length
        position = start + length
    assert position == len(content)


def test_the_example_decodes_to_what_the_text_says() -> None:
    with nqformat.safe_open(EXAMPLE) as file:
        assert file.metadata() == {"method": "kmeans"}
        weight = file.get_tensor("fc.weight")
        assert weight.shape == (16, 40)
        assert np.count_nonzero(weight) == 63
        positions = np.flatnonzero(weight)
        assert (np.diff(positions, prepend=-1) - 1)[:10].tolist() == [3, 10, 8, 14, 10, 2, 22, 9, 4, 11]
        assert weight.reshape(-1)[positions][:8].tolist() == [0.5, 0.5, -1.5, 0.5, 2.25, 0.5, -1.5, 0.5]
        assert file.get_tensor("fc.bias").tolist() == [0.25, -1, 2, 0.5]


def test_annex_a_is_the_preset_dictionary() -> None:
    text = SPEC.read_text()
    annex = text[text.index("\n## Annex A. ") :]
    lines = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2})+)$", annex, re.MULTILINE)
    assert [int(offset, 16) for offset, _ in lines] == list(range(0, 32 * len(lines), 32))
    content = bytes.fromhex("".join(line for _, line in lines))
    assert content == PRESET_DICTIONARY
    assert f"{len(content):,} bytes with the CRC-32 {zlib.crc32(content):08x}" in annex


def test_a_deflate_stream_needs_the_dictionary() -> None:
    graph = b'"\x04Relu"\x07MaxPool"\x06Concat"\x04Gemm'
    packed = deflate(graph)
    assert len(packed) < len(graph) // 2
    with pytest.raises(zlib.error):
        zlib.decompress(packed, -15)
    assert inflate(packed, len(graph), 1000, "GRAPH") == graph
    with pytest.raises(nqformat.CorruptError):
        inflate(packed[:-1], len(graph), 1000, "GRAPH")


def test_the_script_still_describes_the_vectors() -> None:
    path = ROOT / "spec" / "vectors" / "make_vectors.py"
    found = importlib.util.spec_from_file_location("make_vectors", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    for name, make in module.VALID.items():
        frozen = nqformat.load_file(path.parent / "valid" / f"{name}.nqz")
        described = nqformat.load(make())
        assert list(frozen) == list(described)
        assert all(frozen[n].tobytes() == described[n].tobytes() for n in frozen)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "spec" / "vectors" / "valid").glob("*.nqz")), ids=lambda p: p.stem
)
def test_every_valid_vector_is_read(path: Path) -> None:
    assert nqformat.load_file(path, bfloat16="uint16")
    assert f"`valid/{path.name}`" in (ROOT / "spec" / "vectors" / "README.md").read_text()


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize(
    "path", sorted((ROOT / "spec" / "vectors" / "valid").glob("*.nqz")), ids=lambda p: p.stem
)
def test_changed_vectors_are_read_or_refused(
    path: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With repaired checksums, whatever the bytes say: arrays, or an error of our own classes."""
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    content = path.read_bytes()
    rng = np.random.default_rng(len(content))
    n_refused = 0
    for _ in range(250):
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            changed[int(rng.integers(32, len(content)))] ^= 1 << int(rng.integers(8))
        try:
            nqformat.load(resealed(bytes(changed)))
        except (nqformat.FormatError, nqformat.UnsupportedFeatureError):
            n_refused += 1
    assert n_refused > 100


def resealed(content: bytes) -> bytes:
    """Repair the checksums of a file with one page."""
    n_directory = int.from_bytes(content[12:16], "little")
    page = zlib.crc32(content[32 + n_directory :])
    area = page.to_bytes(4, "little") + content[36 : 32 + n_directory]
    head = content[:24] + zlib.crc32(area).to_bytes(4, "little")
    return head + zlib.crc32(head).to_bytes(4, "little") + area + content[32 + n_directory :]
