"""Ways to store a matrix for the kernels that can take it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nqruntime.symbols import MatrixWeights

from .rows import PackedRows, pack_bytes, pack_floats, pack_gaps, pack_nibbles, pack_slices, scaled

_NIBBLE_ENTRIES = 16
_BYTE_ENTRIES = 256

Pack = Callable[[], PackedRows | None]


def row_candidates(weights: MatrixWeights, *, low_memory: bool) -> dict[str, Pack]:
    """Return the ways to pack a matrix for products with rows in lanes, the most promising first."""

    def floats() -> PackedRows:
        return pack_floats(weights.decoded())

    def slices() -> PackedRows | None:
        nonzeros = weights.nonzeros()
        if nonzeros is None:
            return None
        rows, columns, sparse = nonzeros
        return pack_slices(rows, columns, sparse.symbols, sparse.codebook, weights.shape)

    def gaps() -> PackedRows | None:
        nonzeros = weights.nonzeros()
        if nonzeros is None:
            return None
        rows, columns, sparse = nonzeros
        return pack_gaps(rows, columns, sparse.symbols, sparse.codebook, weights.shape)

    def palette() -> PackedRows | None:
        every = weights.every_symbol()
        if every is None or every[1].size > _BYTE_ENTRIES:
            return None
        pack = pack_nibbles if every[1].size <= _NIBBLE_ENTRIES else pack_bytes
        return pack(every[0].astype(np.uint8), every[1])

    def with_factors(pack: Pack) -> Pack:
        factors = weights.factors
        if factors is None:
            return pack

        def packed() -> PackedRows | None:
            plain = pack()
            return None if plain is None else scaled(plain, factors)

        return packed

    symbols = weights.symbols
    if symbols is None:
        return {"floats": floats}
    found = {} if symbols.positions is None else {"slices": with_factors(slices)}
    if symbols.positions is not None and low_memory:
        found["gaps"] = with_factors(gaps)
    if symbols.codebook.size <= _NIBBLE_ENTRIES or low_memory:
        return {**found, "palette": with_factors(palette)}
    return {**found, "floats": floats}
