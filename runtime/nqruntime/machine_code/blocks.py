"""Numbers of the kernels and of the places in their parameter blocks; plain constants, no imports.

Blocks are int64 arrays. Addresses are those of memory that the caller keeps alive during the call; all
values are float32. A program is an array of (kernel, block address) pairs, run in order.

| block | places |
|---|---|
| PROGRAM | 0 steps, 1 address of the steps |
| every product with rows in lanes | 0 first and 1 last block of rows, 2 source, 3 bytes from one source vector to the next, 4 source vectors, 5 out, 6 bytes from one output vector to the next, 7 inputs, 8 weights, 9 codebook, 10 bias, 11 lowest and 12 highest output (float bits), 13 factors of the sums |
| FLOAT_ROWS, NIBBLE_ROWS, BYTE_ROWS | 14 buffer of PIECE_INPUTS inputs of a block, 15 the floats -inf and inf, then for the rows of a block ones and zeros |
| SLICE_ROWS | slices for blocks, 8 starts of the slices (int32); 14 row numbers (int32), 15 columns (uint16), 16 symbols (uint8), 17 whether the codebook has at most 16 entries |
"""  # noqa: E501

from __future__ import annotations

PROGRAM, FLOAT_ROWS, NIBBLE_ROWS, BYTE_ROWS, SLICE_ROWS = range(5)

ROW_VECTORS = 4
"""Vectors of 16 rows in a block of the products with rows in lanes."""

PIECE_INPUTS = 256
"""Inputs of a block of rows that are decoded together: 64 KB of floats. Even, so that no byte is cut."""
