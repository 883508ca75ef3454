"""Many readers at once, in threads and processes, while the file is replaced, read one whole version."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import nqformat
from fuzz.golden import golden_files

SCALES = [(8, 12, 2), pytest.param(32, 200, 8, marks=pytest.mark.slow)]


def digest(tensors: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name, array in tensors.items():
        found.update(name.encode() + str(array.shape).encode() + array.tobytes())
    return found.hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "all.nqz"
    target.write_bytes(golden_files()["all"])
    return target


@pytest.mark.parametrize(("n_threads", "n_loads", "n_processes"), SCALES)
def test_threads_and_processes_read_the_same(
    path: Path, n_threads: int, n_loads: int, n_processes: int
) -> None:
    expected = digest(nqformat.load_file(path, bfloat16="uint16"))

    def load(_: int) -> set[str]:
        return {digest(nqformat.load_file(path, bfloat16="uint16")) for _ in range(n_loads)}

    with ThreadPoolExecutor(n_threads) as pool:
        assert set.union(*pool.map(load, range(n_threads))) == {expected}
    code = (
        "import sys, hashlib, nqformat; h = hashlib.sha256();"
        "[h.update(n.encode() + str(a.shape).encode() + a.tobytes())"
        " for n, a in nqformat.load_file(sys.argv[1], bfloat16='uint16').items()]; print(h.hexdigest())"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(n_processes)
    ]
    assert {process.communicate(timeout=120)[0].strip() for process in running} == {expected}


@pytest.mark.parametrize(("n_threads", "n_loads", "_"), SCALES)
def test_threads_share_an_open_file(path: Path, n_threads: int, n_loads: int, _: int) -> None:
    with nqformat.safe_open(path, bfloat16="uint16") as file:
        expected = {name: file.get_tensor(name).tobytes() for name in file}
    with nqformat.safe_open(path, bfloat16="uint16") as file:

        def load(seed: int) -> bool:
            rng = np.random.default_rng(seed)
            names = list(file)
            return all(
                file.get_tensor(name).tobytes() == expected[name]
                for name in (names[rng.integers(len(names))] for _ in range(n_loads))
            )

        with ThreadPoolExecutor(n_threads) as pool:
            assert all(pool.map(load, range(n_threads)))


@pytest.mark.parametrize(("n_threads", "n_loads", "_"), SCALES)
def test_a_file_replaced_under_its_readers_is_read_old_or_new(
    path: Path, n_threads: int, n_loads: int, _: int
) -> None:
    versions = [{"a": np.arange(20_000) + i, "b": np.float32(i)} for i in range(2)]
    nqformat.save_file(versions[0], path)
    legal = {digest(version) for version in versions}
    seen: set[str] = set()
    done = threading.Event()

    def replace() -> None:
        i = 0
        while not done.is_set():
            i += 1
            nqformat.save_file(versions[i % 2], path)

    def read(number: int) -> set[str]:
        found = set()
        for i in range(n_loads):
            if (number + i) % 2:
                found.add(digest(nqformat.load_file(path)))
                continue
            with nqformat.safe_open(path) as file:
                found.add(digest({name: file.get_tensor(name) for name in file}))
        return found

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        with ThreadPoolExecutor(n_threads) as pool:
            seen = set.union(*pool.map(read, range(n_threads)))
    finally:
        done.set()
        writer.join()
    assert seen <= legal


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_an_open_file_is_read_after_a_fork(tmp_path: Path) -> None:
    # in a process of its own: this one has threads that a fork would leave behind
    code = """
import os, sys, signal, numpy as np, nqformat
from nqformat import Codebook, CodebookTensor
numbers = np.random.default_rng(0).integers(0, 7, (900, 1000)).astype(np.uint8)
book = Codebook(values=np.arange(7, dtype=np.float32))
nqformat.save_file({"a": CodebookTensor(indices=numbers, codebook=book)}, sys.argv[1])
with nqformat.safe_open(sys.argv[1], threads=2) as file:
    before = file.get_tensor("a")
    child = os.fork()
    signal.alarm(60)
    same = bool((file.get_tensor("a") == before).all())
    if child == 0:
        os._exit(0 if same else 1)
    status = os.waitpid(child, 0)[1]
sys.exit(0 if same and status == 0 else 1)
"""
    environment = {**os.environ, "NQFORMAT_KERNELS": "numpy"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f.nqz")], env=environment, timeout=120, check=False
    )
    assert done.returncode == 0
