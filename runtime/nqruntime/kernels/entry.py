"""Entry of the compute kernels, compiled by Numba into one function; imported on compilation only.

As the entries of ``nqformat.kernels``: no kernel allocates, raises or calls back, each returns a status, and
the caller vouches for every area that a block names.
"""

from __future__ import annotations

import numpy as np

from nqformat.kernels.memory import load64, load_parameter
from nqformat.kernels.words import U0, U1, U4, U8, U64, helper

from .blocks import (
    AVERAGE_CHANNELS,
    BYTE_ROWS,
    COPY_ROWS,
    DENSE_PLANES,
    DEPTHWISE_PLANES,
    DEPTHWISE_ROWS,
    FLOAT_ROWS,
    GAP_ROWS,
    INT8_NIBBLE_ROWS,
    INT8_PLANES,
    INT8_ROWS,
    MEET,
    NIBBLE_ROWS,
    POOL_AVERAGE,
    POOL_LARGEST,
    PROGRAM,
    QUANTIZE_PLANES,
    QUANTIZE_ROWS,
    RANGE_PLANES,
    SCALE_PLANES,
    SKIP_COLUMNS,
    SLICE_ROWS,
    SPARSE_PLANES,
    TRANSPOSE,
)
from .copies import copy_rows, transpose
from .dense_planes import convolve_dense
from .depthwise import convolve_depthwise, convolve_depthwise_rows
from .gaps import multiply_gaps
from .int8_planes import convolve_int8
from .int8_rows import multiply_int8, multiply_int8_nibbles
from .planes import convolve_sparse
from .pointwise import scale_channels
from .pooling import average_channels, pool
from .quantizing import find_ranges, quantize_planes, quantize_rows
from .rows import multiply_bytes, multiply_floats, multiply_nibbles, multiply_slices
from .sequence_entry import run_sequence_step
from .skipping import multiply_skipping
from .threads import meet


@helper
def _run_step(kernel, block):  # type: ignore[no-untyped-def]
    if kernel == U64(FLOAT_ROWS):
        return multiply_floats(block)
    if kernel == U64(MEET):
        return meet(block)
    if kernel == U64(GAP_ROWS):
        return multiply_gaps(block)
    if kernel == U64(SKIP_COLUMNS):
        return multiply_skipping(block)
    if kernel == U64(NIBBLE_ROWS):
        return multiply_nibbles(block)
    if kernel == U64(BYTE_ROWS):
        return multiply_bytes(block)
    if kernel == U64(SLICE_ROWS):
        return multiply_slices(block)
    if kernel == U64(SPARSE_PLANES):
        return convolve_sparse(block)
    if kernel == U64(DENSE_PLANES):
        return convolve_dense(block)
    if kernel == U64(DEPTHWISE_PLANES):
        return convolve_depthwise(block)
    if kernel == U64(SCALE_PLANES):
        return scale_channels(block)
    if kernel == U64(COPY_ROWS):
        return copy_rows(block)
    if kernel == U64(POOL_LARGEST):
        return pool(block, U0)
    if kernel == U64(POOL_AVERAGE):
        return pool(block, U1)
    if kernel == U64(AVERAGE_CHANNELS):
        return average_channels(block)
    if kernel == U64(DEPTHWISE_ROWS):
        return convolve_depthwise_rows(block)
    if kernel == U64(TRANSPOSE):
        return transpose(block)
    if kernel == U64(QUANTIZE_ROWS):
        return quantize_rows(block)
    if kernel == U64(INT8_ROWS):
        return multiply_int8(block)
    if kernel == U64(INT8_NIBBLE_ROWS):
        return multiply_int8_nibbles(block)
    if kernel == U64(RANGE_PLANES):
        return find_ranges(block)
    if kernel == U64(QUANTIZE_PLANES):
        return quantize_planes(block)
    if kernel == U64(INT8_PLANES):
        return convolve_int8(block)
    return run_sequence_step(kernel, block)


def run_kernel(kernel, block):  # type: ignore[no-untyped-def]
    """Run one kernel, or the steps of a program: int64 of two int64; a negative status ends it."""
    start = U64(block)
    if kernel != PROGRAM:
        return _run_step(U64(kernel), start)
    n_steps = load_parameter(start, 0)
    step = load_parameter(start, 1)
    status = np.int64(0)
    while n_steps > U0 and status >= 0:
        status = _run_step(load64(step), load64(step + U8))
        taken = U1
        if status > 0:
            taken += U64(status)
            status = np.int64(0)
        step += taken << U4
        n_steps -= min(taken, n_steps)
    return status
