"""What safety costs: verification while loading, refusal of huge declared sizes, the slowest bits to decode.

    python benchmarks/reading.py [--quick]

Writes benchmarks/results/reading.json. Times are CPU seconds of one thread; medians of rounds in which all
candidates take turns.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import compare, cpu_seconds, machine, write

import nqformat
from nqformat import Codebook, CodebookTensor, Limits

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from fuzz.assembly import Coding, quantized_file  # noqa: E402 (the folder above)
from fuzz.huge import huge_files  # noqa: E402
from nqformat.grouping import GroupMapping  # noqa: E402
from nqformat.tensor import Layout  # noqa: E402

os.environ.setdefault("NQFORMAT_KERNELS", "numba")


def model(n_side: int) -> dict[str, CodebookTensor]:
    """A dense layer of 16 levels of a normal distribution, and one of which 8 % are kept."""
    rng = np.random.default_rng(2)
    levels = np.linspace(-2.4, 2.4, 16).astype(np.float32)
    dense = np.abs(rng.normal(size=(n_side, n_side, 1)).astype(np.float32) - levels[::4]).argmin(2) * 4
    dense += rng.integers(0, 4, dense.shape)
    sparse = np.where(rng.random((n_side, n_side)) < 0.08, 1 + rng.integers(0, 15, (n_side, n_side)), 0)
    zero = np.append(0, levels[1:]).astype(np.float32)
    return {
        "dense": CodebookTensor(indices=dense.astype(np.uint8), codebook=Codebook(values=levels)),
        "sparse": CodebookTensor(indices=sparse.astype(np.uint8), codebook=Codebook(values=zero)),
    }


def verification(n_side: int, rounds: int) -> dict[str, Any]:
    """Time loading with and without verification, for each kind of layer."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, tensor in model(n_side).items():
            path = Path(folder) / f"{name}.nqz"
            nqformat.save_file({name: tensor}, path)
            content = path.read_bytes()

            def unverified(content: bytes = content) -> None:
                with nqformat.from_bytes(content, verify=False, threads=1) as file:
                    dict(file.tensors())

            def verified(content: bytes = content) -> None:
                nqformat.load(content, threads=1)

            def load_file(path: Path = path) -> None:
                nqformat.load_file(path, threads=1)

            def checks(content: bytes = content) -> None:
                with nqformat.from_bytes(content, threads=1) as file:
                    file.verify_checksums()

            calls = {"unverified": unverified, "verified": verified, "load_file": load_file, "checks": checks}
            timed = compare(calls, rounds=rounds)
            share = timed["checks"]["median"] / timed["load_file"]["median"]
            found[name] = {"file_bytes": len(content), "seconds": timed, "verification_share": share}
            print(f"{name}: {len(content):,} bytes, verification {100 * share:.1f} % of load_file")
    return found


def refusals() -> dict[str, float]:
    """Time the refusal of small files that declare huge things: the slowest way to read each."""
    found = {}
    for name, content in huge_files().items():

        def read(content: bytes = content) -> None:
            try:
                nqformat.load(content, limits=Limits(materialised_bytes=1 << 30), threads=1)
            except nqformat.NqError:
                return
            raise AssertionError("a huge file was read")

        read()
        found[name] = min(cpu_seconds(read) for _ in range(5))
    slowest = max(found, key=lambda name: found[name])
    print(f"{len(found)} huge files: refused in at most {1000 * found[slowest]:.1f} ms ({slowest})")
    return found


def slow_streams(n_numbers: int) -> dict[str, float]:
    """Nanoseconds a number of the cheapest and dearest streams: no bits at all, and 13 bits a number."""
    rng = np.random.default_rng(3)
    steps = np.minimum(rng.geometric(0.5, n_numbers) - 1, 13)
    cases = {
        "one symbol": (np.zeros(n_numbers, dtype=np.int64), Coding(mapping=GroupMapping(8, 2))),
        "one symbol, single numbers": (np.zeros(n_numbers, dtype=np.int64), Coding()),
        "deep code": (13 - steps, Coding(mapping=GroupMapping(1, 14))),
        "flat code": (rng.integers(0, 256, n_numbers), Coding()),
    }
    found = {}
    for name, (numbers, coding) in cases.items():
        content = quantized_file(numbers, layout=Layout.DENSE, values=coding).to_bytes()
        nqformat.load(content, threads=1)
        seconds = min(
            cpu_seconds(lambda content=content: nqformat.load(content, threads=1)) for _ in range(5)
        )
        found[name] = 1e9 * seconds / n_numbers
    print("ns a number: " + ", ".join(f"{name} {ns:.2f}" for name, ns in found.items()))
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the size, five rounds")
    quick = parser.parse_args().quick
    results = {
        "machine": machine("numpy", "numba"),
        "verification": verification(1024 if quick else 4096, 5 if quick else 9),
        "refusal_seconds": refusals(),
        "ns_a_number": slow_streams(1 << (18 if quick else 22)),
    }
    if not quick:
        write("reading", results)


if __name__ == "__main__":
    main()
