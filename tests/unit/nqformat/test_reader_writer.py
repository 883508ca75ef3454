"""Opening, closing, replacing and sharing files."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

import nqformat
from nqformat import (
    Codebook,
    CodebookTensor,
    CorruptError,
    DType,
    LimitExceededError,
    Limits,
    ViewSource,
    ViewTensor,
)
from nqformat.files import replaced_when_done, write_atomically
from nqformat.tensor import AffineTensor


@pytest.fixture
def path(tmp_path: Path, small_file: bytes) -> Path:
    target = tmp_path / "model.nqz"
    target.write_bytes(small_file)
    return target


def test_a_view_says_what_it_is_made_of(every_layout, small_file):
    with nqformat.from_bytes(small_file) as file:
        assert file.view("view") == every_layout["view"] and file.view("dense") is None
        with pytest.raises(KeyError):
            file.view("absent")


def test_a_mapped_file_gives_what_the_whole_file_gives(path: Path, small_file: bytes) -> None:
    whole = nqformat.load(small_file, bfloat16="uint16")
    with nqformat.safe_open(path, bfloat16="uint16") as file:
        assert file.keys() == list(whole)
        assert len(file) == len(whole)
        assert "sparse" in file and "nothing" not in file
        for name in reversed(file.keys()):
            assert file.get_tensor(name).tobytes() == whole[name].tobytes()
        assert file.metadata() == {"method": "test"}
        assert file.graph() == b"graph bytes, not parsed by nqformat"


def test_arrays_outlive_the_file(path: Path) -> None:
    with nqformat.safe_open(path) as file:
        raw, packed = file.get_tensor("raw"), file.get_packed("mask")
    path.write_bytes(b"")
    assert raw.size == 37
    assert packed.decode().shape == (16, 40)


def test_unknown_names_and_ranges_are_named(path: Path) -> None:
    with nqformat.safe_open(path) as file:
        with pytest.raises(KeyError, match="no tensor named 'wieght'"):
            file.get_tensor("wieght")
        with pytest.raises(ValueError, match="rows 2:99"):
            file.get_slice("dense", 2, 99)
        with pytest.raises(ValueError, match="rows"):
            file.get_slice("scalar", 0, 1)


def test_slices_agree_with_whole_tensors(path: Path) -> None:
    with nqformat.safe_open(path, bfloat16="uint16") as file:
        for name in ("sparse", "mask", "dense", "affine", "raw", "view", "constant"):
            whole = file.get_tensor(name)
            part = file.get_slice(name, 1, whole.shape[0] - 1)
            assert part.tobytes() == np.ascontiguousarray(whole[1:-1]).tobytes()


def test_bfloat16_is_handed_out_as_asked(path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    forms = {}
    for form in ("uint16", "float32", "ml_dtypes"):
        with nqformat.safe_open(path, bfloat16=form) as file:
            forms[form] = file.get_tensor("brain")
    assert forms["uint16"].dtype == np.uint16
    assert forms["ml_dtypes"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(forms["float32"], forms["ml_dtypes"].astype(np.float32), equal_nan=True)
    with nqformat.safe_open(path, bfloat16="int8") as file, pytest.raises(ValueError, match="bfloat16"):
        file.get_tensor("brain")


def test_only_pages_that_are_touched_are_checked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.integers(0, 256, size=200_000).astype(np.uint8) for name in ("a", "b")}
    content = bytearray(nqformat.save(tensors))
    content[-10] ^= 1
    target = tmp_path / "two.nqz"
    target.write_bytes(content)
    with nqformat.safe_open(target) as file:
        assert np.array_equal(file.get_tensor("a"), tensors["a"])
        with pytest.raises(CorruptError, match="page"):
            file.get_tensor("b")
        with pytest.raises(CorruptError, match="page"):
            file.verify_checksums()
    with nqformat.safe_open(target, verify=False) as file:
        assert not np.array_equal(file.get_tensor("b"), tensors["b"])


def test_large_raw_tensors_are_aligned() -> None:
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.integers(0, 256, size=5000 + i).astype(np.uint8) for i in range(40)}
    content = nqformat.save(tensors)
    with nqformat.from_bytes(content) as file:
        records = file.directory.tensors
        assert all(record.payload_start_abs % 64 == 0 for record in records)
        assert all(np.array_equal(file.get_tensor(name), tensors[name]) for name in file)


def test_limits_bound_what_is_decoded(small_file: bytes) -> None:
    with pytest.raises(LimitExceededError, match="limit 1000"):
        nqformat.load(small_file, limits=Limits(materialised_bytes=1000))
    with pytest.raises(LimitExceededError, match="directory"):
        nqformat.load(small_file, limits=Limits(directory_bytes=10))
    with pytest.raises(LimitExceededError, match="tensors"):
        nqformat.load(small_file, limits=Limits(n_tensors=3))


def test_threads_read_one_open_file(path: Path, small_file: bytes) -> None:
    expected = {name: array.tobytes() for name, array in nqformat.load(small_file, bfloat16="uint16").items()}
    faults: list[object] = []

    def read(file: nqformat.NqzFile, seed: int) -> None:
        names = np.random.default_rng(seed).permutation(file.keys())
        for name in names:
            if file.get_tensor(str(name)).tobytes() != expected[str(name)]:
                faults.append(name)

    with nqformat.safe_open(path, bfloat16="uint16") as file:
        threads = [threading.Thread(target=read, args=(file, seed)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not faults


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(path: Path, small_file: bytes) -> None:
    def pieces() -> object:
        yield b"new"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_atomically(path, pieces())
    assert path.read_bytes() == small_file
    assert os.listdir(path.parent) == [path.name]


def test_new_files_follow_the_umask_and_old_ones_keep_their_bits(tmp_path: Path) -> None:
    target = tmp_path / "file"
    previous = os.umask(0o027)
    try:
        write_atomically(target, [b"1"])
    finally:
        os.umask(previous)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    target.chmod(0o600)
    write_atomically(target, [b"2", b"3"])
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"23", 0o600)


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), replaced_when_done(tmp_path):
        raise AssertionError("never entered")


def test_what_cannot_be_stored_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"tensor 'c'.*complex64"):
        nqformat.save({"c": np.zeros(3, dtype=np.complex64)})
    with pytest.raises(TypeError, match="tensor 'l' is a list"):
        nqformat.save({"l": [1, 2]})
    with pytest.raises(ValueError, match="rank 9"):
        nqformat.save({"r": np.zeros((1,) * 9)})
    for name in ("", "a\0b", "x" * 1025, "\ud800"):
        with pytest.raises(ValueError, match="tensor name"):
            nqformat.save({name: np.zeros(3)})
    with pytest.raises(ValueError, match="no stored tensor"):
        nqformat.save(
            {"v": ViewTensor(sources=(ViewSource(name="a", start=0, stop=1),), permutation=(0,), shape=(1,))}
        )
    with pytest.raises(ValueError, match="finite"):
        Codebook(values=np.array([np.nan], dtype=np.float32))
    with pytest.raises(ValueError, match="exactly representable"):
        Codebook(values=np.array([0.1], dtype=np.float32), stored_as=DType.FLOAT16)
    with pytest.raises(ValueError, match="beyond the codebook"):
        CodebookTensor(
            indices=np.array([1], dtype=np.uint8), codebook=Codebook(values=np.zeros(1, dtype=np.float32))
        )
    with pytest.raises(ValueError, match=r"2\*\*24"):
        AffineTensor(k=np.array([1 << 24], dtype=np.int32), step=1.0)


def test_equal_tensors_give_equal_bytes(every_layout: dict[str, object], small_file: bytes) -> None:
    again = nqformat.save(
        every_layout, graph=b"graph bytes, not parsed by nqformat", metadata={"method": "test"}
    )
    assert again == small_file


def test_an_edge_file_has_a_plain_directory(every_layout: dict[str, object]) -> None:
    edge = nqformat.save(every_layout, edge=True)
    with nqformat.from_bytes(edge, bfloat16="uint16") as file:
        assert not file.header.deflated
        assert b"sparse_sibling"[7:] in edge
        assert file.get_tensor("raw").size == 37
