"""Both readers give every conformance file the contents or the error that its description says."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_vectors
import nqformat
import reference_reader as reference

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "spec" / "vectors"
SETS = [VECTORS, *sorted(path for path in (ROOT / "tests" / "compat").iterdir() if path.name[:1] == "v")]
Said = dict[str, Any]


def outcome(read: Callable[[], Any]) -> Any:
    """What an item holds, or the name of the error class that refuses it."""
    try:
        return read()
    except (reference.NqzError, nqformat.NqError) as error:
        return {"error": type(error).__name__.removesuffix("Error")}


def graph_of(read: Callable[[], bytes | None]) -> str | None:
    content = read()
    return None if content is None else f"{zlib.crc32(content):08x}"


def array_of(array: np.ndarray) -> list[Any]:
    return [str(array.dtype), list(array.shape), f"{zlib.crc32(array.tobytes()):08x}"]


def said_by_nqformat(content: bytes) -> Said:
    opened: list[nqformat.NqzFile] = []
    refusal = outcome(lambda: opened.append(nqformat.from_bytes(content)))
    if not opened:
        return {"file": refusal}
    with opened[0] as file:
        said = {"graph": outcome(lambda: graph_of(file.graph)), "metadata": outcome(file.metadata)}
        for name in file:
            said[f"tensor {name}"] = outcome(lambda name=name: array_of(file.get_tensor(name)))
        return said


def said_by_reference(content: bytes) -> Said:
    opened: list[Any] = []
    refusal = outcome(lambda: opened.append(reference.NqzFile(content, reference.Limits())))
    if not opened:
        return {"file": refusal}
    file = opened[0]
    said = {"graph": outcome(lambda: graph_of(file.graph)), "metadata": outcome(file.metadata)}
    for tensor in file.tensors:
        said[f"tensor {tensor.head.name}"] = outcome(lambda tensor=tensor: array_of(file.decode(tensor)))
    return said


def errors_in(said: Said) -> dict[str, str]:
    refused = {key: item["error"] for key, item in said.items() if isinstance(item, dict) and "error" in item}
    return {key.removeprefix("tensor "): error for key, error in refused.items()}


def expected(folder: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    assert sorted(path.stem for path in folder.glob("*.nqz")) == sorted(described)
    return described


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("vectors", SETS, ids=lambda path: path.name)
def test_valid_files_hold_what_is_expected(
    vectors: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    for name, wanted in expected(vectors / "valid").items():
        content = (vectors / "valid" / f"{name}.nqz").read_bytes()
        tensors = {f"tensor {tensor}": array for tensor, array in wanted["tensors"].items()}
        wanted = {"graph": wanted["graph"], "metadata": wanted["metadata"]} | tensors
        assert said_by_nqformat(content) == wanted, name
        assert kernels == "numba" or said_by_reference(content) == wanted, name


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("vectors", SETS, ids=lambda path: path.name)
def test_invalid_files_are_refused_with_the_expected_error_and_nothing_else_is(
    vectors: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NQFORMAT_KERNELS", kernels)
    for name, wanted in expected(vectors / "invalid").items():
        content = (vectors / "invalid" / f"{name}.nqz").read_bytes()
        first = said_by_nqformat(content)
        assert errors_in(first) == dict.fromkeys(wanted["of"], wanted["error"]), name
        assert kernels == "numba" or said_by_reference(content) == first, name


def test_there_are_enough_small_files() -> None:
    for folder in ("valid", "invalid"):
        sizes = [path.stat().st_size for path in (VECTORS / folder).glob("*.nqz")]
        assert len(sizes) >= 60 and max(sizes) < 4096
    assert sum(path.stat().st_size for path in VECTORS.rglob("*.nqz")) < 300 << 10


def test_the_script_still_describes_the_files() -> None:
    assert make_vectors.readme() == (VECTORS / "README.md").read_text()
    assert list(expected(VECTORS / "valid")) == list(make_vectors.VALID)
    assert list(expected(VECTORS / "invalid")) == list(make_vectors.INVALID)
    for name, described in make_vectors.VALID.items():
        frozen, made = said_by_nqformat((VECTORS / "valid" / f"{name}.nqz").read_bytes()), described.make()
        assert said_by_nqformat(made) == frozen, name
    for name, fault in make_vectors.INVALID.items():
        assert fault.make() == (VECTORS / "invalid" / f"{name}.nqz").read_bytes(), name
