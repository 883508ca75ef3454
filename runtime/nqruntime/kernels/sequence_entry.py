"""The kernels for transformers and recurrent layers by number: a part of the entry, imported with it."""

from __future__ import annotations

import numpy as np

from nqformat.kernels.words import U64, helper

from .batched import multiply_batches
from .blocks import AVERAGE_ROWS, BATCHED, ELEMENTWISE, NORMAL_ROWS, RECURRENT, SOFTMAX_ROWS
from .elementwise import compute_rows
from .recurrent import run_recurrent
from .statistics import average_rows, normalize_rows, softmax_rows


@helper
def run_sequence_step(kernel, block):  # type: ignore[no-untyped-def]
    """Run one kernel; -2 for a number that is none."""
    if kernel == U64(ELEMENTWISE):
        return compute_rows(block)
    if kernel == U64(BATCHED):
        return multiply_batches(block)
    if kernel == U64(SOFTMAX_ROWS):
        return softmax_rows(block)
    if kernel == U64(NORMAL_ROWS):
        return normalize_rows(block)
    if kernel == U64(AVERAGE_ROWS):
        return average_rows(block)
    if kernel == U64(RECURRENT):
        return run_recurrent(block)
    return np.int64(-2)
