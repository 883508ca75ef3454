"""Entry of the decoding kernels, compiled by Numba into one function; imported on compilation only.

:func:`run_kernel` is the only entry: a kernel number and the address of a block of int64 parameters
(``blocks.py`` names the places). No kernel allocates, raises or calls back; each returns a status, 0 or more
if all went well and -1 if the data is damaged. Every function states why its accesses stay inside the
areas that its caller vouches for.
"""

from __future__ import annotations

import numpy as np

from .blocks import BYTES, DENSE, HYBRID, MASK, PLANES, POPCOUNT, SPARSE, TABLE
from .dense import count_mask, decode_dense, expand_mask, join_planes
from .lookup import build_table
from .sparse import decode_sparse, join_hybrid


def run_kernel(kernel, block):  # type: ignore[no-untyped-def]
    """Run kernel number `kernel` on the parameters at address `block`: int64 of two int64."""
    start = np.uint64(block)
    if kernel in (DENSE, BYTES):
        return decode_dense(start)
    if kernel == SPARSE:
        return decode_sparse(start)
    if kernel == MASK:
        return expand_mask(start)
    if kernel == POPCOUNT:
        return count_mask(start)
    if kernel == HYBRID:
        return join_hybrid(start)
    if kernel == PLANES:
        return join_planes(start)
    if kernel == TABLE:
        return build_table(start)
    return np.int64(-2)
