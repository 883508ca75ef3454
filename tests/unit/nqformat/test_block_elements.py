"""Blocks hold the stored elements of their lines, in scan order, whatever the stretches they are made in."""

from __future__ import annotations

import numpy as np
import pytest

from nqformat import block_elements
from nqformat.block_elements import Lines, blocks_of, gaps_of, scan_mask
from nqformat.tensor import Layout


def by_hand(nonzero: np.ndarray, column_scan: bool, lines: Lines) -> list[tuple[list[int], list[int]]]:
    """C-order positions of a matrix's stored elements, and their places in the block, for each block."""
    places = np.arange(nonzero.size).reshape(nonzero.shape)
    stored, places = (nonzero.T, places.T) if column_scan else (nonzero, places)
    classes = np.zeros(stored.shape[0], np.uint8) if lines.classes is None else lines.classes
    alive = np.ones(stored.shape[1], bool) if lines.alive is None else lines.alive
    found = []
    for number in range(lines.n_classes):
        inside = stored[classes == number][:, alive].reshape(-1)
        elements = places[classes == number][:, alive].reshape(-1)[inside]
        found.append((elements.tolist(), np.flatnonzero(inside).tolist()))
    return found


@pytest.mark.parametrize("column_scan", [False, True])
@pytest.mark.parametrize("classed", [False, True])
@pytest.mark.parametrize("thinned", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_blocks_are_those_found_by_hand(
    monkeypatch: pytest.MonkeyPatch, column_scan: bool, classed: bool, thinned: bool, density: float
) -> None:
    monkeypatch.setattr(block_elements, "_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    nonzero = rng.random((9, 13)) < density
    if thinned:
        nonzero[2:4] = nonzero[:, 5:8] = False
    n_lines = 13 if column_scan else 9
    lines = Lines(
        classes=(np.arange(n_lines) % 3).astype(np.uint8) if classed else None,
        alive=nonzero.any(axis=1 if column_scan else 0) if thinned else None,
    )
    blocks = blocks_of(Layout.SPARSE, (9, 13), nonzero.reshape(-1), column_scan, lines)
    expected = by_hand(nonzero, column_scan, lines)
    assert len(blocks) == len(expected)
    for block, (elements, inside) in zip(blocks, expected, strict=True):
        assert block.elements is not None and block.inside is not None
        assert block.elements.tolist() == elements and block.inside.tolist() == inside
        assert block.n_elements % max(block.n_lines, 1) == 0
        assert np.cumsum(gaps_of(block.inside) + 1).tolist() == [place + 1 for place in inside]
        mask = np.unpackbits(scan_mask(block.inside, block.n_elements), bitorder="little")
        assert np.flatnonzero(mask).tolist() == inside
