"""Which way to store a matrix is fastest on this machine: timed, not guessed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from nqformat.kernels.objects import KernelLibrary
from nqruntime.packing.areas import address, aligned
from nqruntime.packing.rows import BUFFER_FLOATS, PackedRows

_SECONDS = 0.002
_FEWEST, _MOST = 3, 25
_SEED = 0


def best_seconds(run: Callable[[], object]) -> float:
    """Return the shortest of several runs, for a few milliseconds."""
    run()
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds < _FEWEST or (spent < _SECONDS and rounds < _MOST):
        started = time.perf_counter()
        run()
        taken = time.perf_counter() - started
        best, spent, rounds = min(best, taken), spent + taken, rounds + 1
    return best


def product_seconds(library: KernelLibrary, packed: PackedRows, n_vectors: int) -> float:
    """Time one product of a matrix with noise."""
    noise = np.random.default_rng(_SEED).standard_normal(n_vectors * packed.n_columns).astype(np.float32)
    out = aligned(n_vectors * packed.out_size, np.float32)
    buffer = aligned(BUFFER_FLOATS, np.float32)
    bias = packed.bias(None)
    block = packed.block(
        source=address(noise),
        source_pitch=packed.n_columns,
        n_sources=n_vectors,
        out=address(out),
        out_pitch=packed.out_size,
        bias=address(bias),
        low=-np.inf,
        high=np.inf,
        buffer=address(buffer),
    )
    return best_seconds(lambda: library.run(packed.kernel, address(block)))
