"""Entry of the encoding kernels, compiled by Numba into one function; imported on compilation only.

As ``decoder.py``: no kernel allocates, raises or calls back, and each returns a status.
"""

from __future__ import annotations

import numpy as np

from .blocks import COUNT, ENCODE_TANS, JOIN_PAIRS, PACK_BITS, PACK_CODES, PACK_PAIRS
from .packing import count_symbols, encode_tans, join_pairs, pack_bits, pack_codes, pack_pairs


def run_kernel(kernel, block):  # type: ignore[no-untyped-def]
    """Run kernel number `kernel` on the parameters at address `block`: int64 of two int64."""
    start = np.uint64(block)
    if kernel == PACK_CODES:
        return pack_codes(start)
    if kernel == PACK_PAIRS:
        return pack_pairs(start)
    if kernel == JOIN_PAIRS:
        return join_pairs(start)
    if kernel == PACK_BITS:
        return pack_bits(start)
    if kernel == COUNT:
        return count_symbols(start)
    if kernel == ENCODE_TANS:
        return encode_tans(start)
    return np.int64(-2)
