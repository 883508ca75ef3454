"""Saves files until it is told otherwise, or until something ends it: run by test_saving.py."""

from __future__ import annotations

import builtins
import os
import resource
import signal
import sys
import time
from typing import Any

import numpy as np

import nqformat
import nqformat.files


def tensors(seed: int) -> dict[str, Any]:
    """About 200 kB that depend on the seed."""
    return {
        "seed": np.int64(seed),
        "noise": np.random.default_rng(seed).integers(0, 256, 200_000).astype(np.uint8),
    }


def save_for_ever(path: str, first_seed: int) -> None:
    """Replace the file again and again."""
    for seed in range(first_seed, first_seed + 1_000_000):
        nqformat.save_file(tensors(seed), path)


def serve_kills(path: str, n_kills: int) -> None:
    """Fork savers, kill each after a random time and look at the file."""
    rng = np.random.default_rng(3)
    nqformat.save_file(tensors(-1 & 0xFF), path)
    n_replaced = 0
    for kill in range(n_kills):
        before = nqformat.load_file(path)["seed"]
        child = os.fork()
        if child == 0:
            save_for_ever(path, 1000 * kill + 1000)
        time.sleep(float(rng.uniform(0, 0.02) if kill % 4 else rng.uniform(0.05, 0.2)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = nqformat.load_file(path)
        assert np.array_equal(found["noise"], tensors(int(found["seed"]))["noise"])
        n_replaced += int(found["seed"] != before)
        for name in os.listdir(os.path.dirname(path)):
            if name.endswith(".part"):
                os.unlink(os.path.join(os.path.dirname(path), name))
    print(n_replaced)


def die_at_call(path: str, number: int) -> None:
    """Kill this process at the `number`-th system call of saving; end well if there are fewer."""
    calls = 0

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    class CountedFile:
        def __init__(self, *arguments: Any) -> None:
            self._file = counted(builtins.open)(*arguments)

        def __enter__(self) -> CountedFile:
            return self

        def __exit__(self, *_: object) -> None:
            counted(self._file.close)()

        def write(self, content: bytes) -> None:
            half = len(content) // 2
            counted(self._file.write)(content[:half])
            self._file.flush()
            counted(self._file.write)(content[half:])

        def fileno(self) -> int:
            return self._file.fileno()  # type: ignore[no-any-return]

    for name in ("fsync", "replace", "chmod", "close"):
        setattr(os, name, counted(getattr(os, name)))
    nqformat.files.open = CountedFile  # type: ignore[attr-defined]
    nqformat.save_file(tensors(7), path)


def save_with_full_disk(path: str, most_bytes: int) -> None:
    """Save where files cannot grow beyond `most_bytes`."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        nqformat.save_file(tensors(7), path)
    except OSError as error:
        print(error.errno)


def main() -> None:
    """Do what the command line says."""
    action, path, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    {"kills": serve_kills, "die": die_at_call, "full": save_with_full_disk}[action](path, number)


if __name__ == "__main__":
    main()
