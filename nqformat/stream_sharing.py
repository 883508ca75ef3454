"""Greedy merging: slices share a stream and its code table while that saves bytes (spec/rationale.md)."""

from __future__ import annotations

import numpy as np

_STREAM_BYTES = 8.0
_ALL_PAIRS_UP_TO = 400


def _code_bytes(counts: np.ndarray) -> np.ndarray:
    """Estimate payload, table and record bytes for rows of symbol counts: float64, shape (n_rows,)."""
    rows = np.atleast_2d(counts).astype(np.float64)
    totals = rows.sum(axis=1)
    logs = np.log2(np.maximum(rows, 1.0))
    bits = totals * np.log2(np.maximum(totals, 1.0)) - (rows * logs).sum(axis=1)
    used = rows > 0
    edges = (used[:, 1:] & ~used[:, :-1]).sum(axis=1)
    table_bits = 2.3 * used.sum(axis=1) + 7.0 * edges
    estimate: np.ndarray = (bits + table_bits) / 8.0 + _STREAM_BYTES
    return estimate


def merge_slices(counts: list[np.ndarray]) -> list[list[int]]:
    """Partition slices into groups that share one code.

    Parameters
    ----------
    counts : list of ndarray, each of shape (256,)
        Symbol counts of each slice; all slices have the same kind and mapping.

    Returns
    -------
    list of list of int
        Groups in order of their first slice, each ascending.

    Notes
    -----
    The pair with the largest saving is merged until none saves a byte: O(n**2) estimates. Beyond 400 slices
    only neighbours in the list of groups are considered.
    """
    groups = [[i] for i in range(len(counts))]
    tables = [c.astype(np.float64) for c in counts]
    costs = [float(_code_bytes(t)[0]) for t in tables]
    if len(groups) > _ALL_PAIRS_UP_TO:
        return _merge_neighbours(groups, tables, costs)
    savings = np.full((len(groups), len(groups)), -np.inf)
    for i in range(len(groups) - 1):
        _update_row(savings, i, range(i + 1, len(groups)), tables, costs)
    alive = set(range(len(groups)))
    while len(alive) > 1:
        flat = int(np.argmax(savings))
        i, j = divmod(flat, len(groups))
        if savings[i, j] <= 0:
            break
        groups[i] += groups[j]
        tables[i] = tables[i] + tables[j]
        costs[i] = float(_code_bytes(tables[i])[0])
        alive.discard(j)
        savings[j, :] = savings[:, j] = -np.inf
        _update_row(savings, i, sorted(alive - {i}), tables, costs)
    return sorted((sorted(groups[i]) for i in alive), key=lambda group: group[0])


def _update_row(
    savings: np.ndarray, i: int, others: range | list[int], tables: list[np.ndarray], costs: list[float]
) -> None:
    """Recompute what merging group `i` with each of `others` saves."""
    columns = list(others)
    if not columns:
        return
    merged = _code_bytes(np.stack([tables[j] for j in columns]) + tables[i])
    gain = np.array([costs[j] for j in columns]) + costs[i] - merged
    for j, saved in zip(columns, gain, strict=True):
        savings[min(i, j), max(i, j)] = saved


def _merge_neighbours(
    groups: list[list[int]], tables: list[np.ndarray], costs: list[float]
) -> list[list[int]]:
    """Merge each slice into the group before it where that saves bytes."""
    kept = [0]
    for i in range(1, len(groups)):
        last = kept[-1]
        merged = float(_code_bytes(tables[last] + tables[i])[0])
        if merged < costs[last] + costs[i]:
            groups[last] += groups[i]
            tables[last] = tables[last] + tables[i]
            costs[last] = merged
        else:
            kept.append(i)
    return [groups[i] for i in kept]
