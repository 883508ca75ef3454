"""Numbers of the kernels and of the places in their parameter blocks; plain constants, no imports.

Blocks are int64 arrays. Addresses are those of memory that the caller keeps alive during the call.

| block | places |
|---|---|
| stream | 0 source, 1 source bytes, 2 kind, 3 table, 4 single-symbol table, 5 window (TANS: log2 of the states), 6 most symbols of an entry, 7 group, 8 spread (uint64 of the numbers of each symbol), 9 highest symbol (STORED), 10 symbol (SINGLE), 11 rows |
| row | 0 start of the chunk, 1-4 bytes of the sub-streams, 5 sub-streams, 6 symbols, 7 numbers, 8 extra bytes, 9 place or scan position of the first number, 10 scan position after the last or -1 |
| DENSE | 0 stream, 1 out, 2 bytes of a value or 0 for the numbers themselves, 3 values, 4 joined values (of the numbers of a group; with groups of one, of pairs of numbers below 16, or 0), 5 and 6 buffers, 7 first row, 8 last row, 9 elements of out, 10 tile of TILE_ELEMENTS elements, 11 whether out is written past the cache |
| SPARSE | as DENSE, then 12 gap entries, 13 rows of the column scan or 0, 14 its columns, 15 gap stream, 16 buffer; returns the scan position after the last number |
| MASK | 0 mask, 1 elements, 2 numbers, 3 values, 4 bytes of a value, 5 out |
| POPCOUNT | 0 start, 1 bytes |
| HYBRID | 0 symbols, 1 symbols' number, 2 gap entries, 3 extra bits, 4 extra bytes, 5 out |
| PLANES | 0 out, 1 elements, 2 bytes of an element, 3 rotate, 4-11 planes |
| TABLE | 0 lengths, 1 window, 2 kind, 3 table, 4 single-symbol table |
| PACK_CODES | 0 symbols, 1 their number, 2 codes (codeword, length << 16), 3 out |
| JOIN_PAIRS | 0 codes, 1 pairs (both codewords, bits << 26) |
| PACK_PAIRS | 0 pairs, 1 codes, 2-5 symbols of each sub-stream, 6-9 their numbers, replaced by bits, 10-13 outs |
| PACK_BITS | 0 values, 1 widths, 2 their number, 3 out |
| COUNT | 0 symbols, 1 their number, 2 four tables |
| ENCODE_TANS | 0 symbols, 1 their number, 2 bit counts, 3 state offsets, 4 first places, 5 states in the order of (symbol, state), 6 log2 of the states, 7 buffer of an int32 a symbol, 8 out |
"""  # noqa: E501

from __future__ import annotations

BYTES, DENSE, SPARSE, MASK, POPCOUNT, HYBRID, PLANES, TABLE = range(8)

PACK_CODES, PACK_BITS, COUNT, ENCODE_TANS, JOIN_PAIRS, PACK_PAIRS = range(6)

STORED, SINGLE, WIDE, NARROW, TANS = range(5)

CODED = 11
"""Places of a row."""

TILE_ELEMENTS = 4096
"""Elements that are computed in cache before they are written to a large result."""
