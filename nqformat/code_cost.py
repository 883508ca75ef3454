"""What symbols will cost: fast estimates for planning, exact choice of a code for writing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from .prefix_code import MAX_CODE_LENGTH, PrefixCode
from .streams import Code, Codec
from .tans import MAX_TABLE_LOG2, TansCode

STREAM_BYTES = 8.0
_DEFAULT_CODE_LENGTH = 12
_TANS_STATE_BYTES = 2
_PREFIX_ENTRY_BITS = 1.8
_TANS_ENTRY_BITS = 3.4
_TANS_STATES = 1 << MAX_TABLE_LOG2
_LOG2_E = 1.4427
_TANS_GAIN = 0.998
_TANS_GAIN_LARGE = 0.98
_LARGE_SYMBOLS = 1 << 18
_RESOLUTIONS = (1, 2, 3)
_MIN_SMOOTHED = 6
_SMOOTHINGS = ((1, 0.3), (1, 0.6), (2, 1.0))
_SHORT_CODE_LENGTH = 11


class Prefer(Enum):
    """What a writer aims at where it can choose."""

    SIZE = "size"
    SPEED = "speed"


def estimate_bytes(counts: np.ndarray, extra_bits: np.ndarray, prefer: Prefer) -> np.ndarray:
    """Estimate payload, table and record of a stream of its own for each row of symbol counts.

    Parameters
    ----------
    counts : ndarray of float64, shape (n_rows, 256)
    extra_bits : ndarray of float64, shape (n_rows,)

    Returns
    -------
    ndarray of float64, shape (n_rows,)

    Notes
    -----
    A tANS code takes the entropy. A prefix code takes about 0.6 % more, and one bit at least: where one
    symbol has 0.4 of all or more, it is taken out and the rest coded behind a bit. Symbols rarer than a
    tANS state take a state all the same, which the others pay for.
    """
    counts = counts[:, : _used_width(counts)]
    totals = counts.sum(axis=1)
    logs = np.log2(np.maximum(counts, 1.0))
    plogp = (counts * logs).sum(axis=1)
    log_totals = np.log2(np.maximum(totals, 1.0))
    entropy = totals * log_totals - plogp
    top = counts.max(axis=1, initial=0.0)
    rest = totals - top
    log_rest = np.log2(np.maximum(rest, 1.0))
    top_log = np.log2(np.maximum(top, 1.0))
    behind = totals + (rest * log_rest - (plogp - top * top_log)) * 1.006
    used = counts > 0
    n_used = used.sum(axis=1)
    edges = (used[:, 1:] & ~used[:, :-1]).sum(axis=1)
    prefix = (
        np.where(top >= 0.4 * totals, behind, entropy * 1.006)
        + _PREFIX_ENTRY_BITS * n_used
        + 7.0 * edges
        + 24
    )
    bits = np.minimum(prefix, 8.0 * totals)
    if prefer is Prefer.SIZE:
        rare = used & (counts * _TANS_STATES < totals[:, None])
        rare_counts = np.where(rare, counts, 0.0)
        stolen = rare.sum(axis=1) / _TANS_STATES - rare_counts.sum(axis=1) / np.maximum(totals, 1.0)
        spared = (rare_counts * (log_totals[:, None] - logs - MAX_TABLE_LOG2)).sum(axis=1)
        tans = (
            entropy * 1.0008
            + totals * stolen * _LOG2_E
            - spared
            + _TANS_ENTRY_BITS * n_used
            + 6.0 * edges
            + 40
        )
        bits = np.minimum(bits, tans)
    bits = np.where(n_used <= 1, 16.0, bits) + extra_bits
    estimate: np.ndarray = np.where(totals > 0, bits / 8.0, 0.0) + STREAM_BYTES
    return estimate


def _used_width(counts: np.ndarray) -> int:
    """One more than the largest symbol of any row."""
    used = np.flatnonzero(counts.any(axis=0))
    return int(used[-1]) + 1 if used.size else 1


def exact_bytes(counts: np.ndarray, extra_bits: float) -> float:
    """Bytes of a stream of its own under its best prefix code or stored, with its record."""
    whole = np.rint(counts).astype(np.int64)
    chosen = choose_code(np.where((counts > 0) & (whole == 0), 1, whole), Prefer.SPEED)
    return chosen.n_bytes + extra_bits / 8 + STREAM_BYTES


@dataclass(frozen=True, slots=True)
class ChosenCode:
    """A codec with its code (None when stored) and the bytes of payload and table."""

    codec: Codec
    code: Code | None
    n_bytes: float


def choose_code(
    counts: np.ndarray, prefer: Prefer, n_substreams: int = 1, *, large_file: bool = False
) -> ChosenCode:
    """Choose codec and code for exact symbol counts, by bytes.

    tANS is taken only where it saves 0.2 % against the best prefix code, of streams over 2**18 symbols and
    in large files 2 %: it decodes to symbols at 0.6 (16 levels) to 1 times (256 levels) the speed, which
    nobody notices in a small file.
    """
    n_symbols = int(counts.sum())
    stored = ChosenCode(Codec.STORED, None, n_symbols)
    if n_symbols == 0:
        return stored
    best = _prefix_choice(counts, prefer)
    if prefer is Prefer.SIZE and np.count_nonzero(counts) > 1:
        found = min((_tans_choice(counts, r, n_substreams) for r in _RESOLUTIONS), key=lambda c: c.n_bytes)
        gain = _TANS_GAIN_LARGE if large_file or n_symbols >= _LARGE_SYMBOLS else _TANS_GAIN
        if found.n_bytes < best.n_bytes * gain:
            best = found
    return best if best.n_bytes < n_symbols else stored


def refine_code(
    counts: np.ndarray, chosen: ChosenCode, prefer: Prefer, *, large_file: bool = False
) -> ChosenCode:
    """Try codes for counts that are smoothed over neighbouring symbols: their tables take fewer bytes.

    A table follows the noise of the counts, which costs more than it saves in small streams. tANS may
    take over from a prefix code under the rule of :func:`choose_code`.

    Notes
    -----
    Smoothing takes the weighted geometric mean of each count and the one of its used neighbours.
    """
    n_symbols = int(counts.sum())
    few = np.count_nonzero(counts) < _MIN_SMOOTHED
    if chosen.code is None or few or n_symbols >= _LARGE_SYMBOLS or large_file:
        return chosen
    best = chosen
    for reach, share in _SMOOTHINGS:
        smooth = _smoothed(counts, reach, share)
        if chosen.codec is Codec.HUFFMAN:
            for max_length in (_SHORT_CODE_LENGTH, _DEFAULT_CODE_LENGTH):
                if np.count_nonzero(counts) <= 1 << max_length:
                    best = min(best, _prefix_cost(counts, smooth, max_length), key=lambda c: c.n_bytes)
        if prefer is Prefer.SIZE:
            for resolution in _RESOLUTIONS:
                found = _tans_choice(counts, resolution, 1, smooth)
                gain = 1.0 if best.codec is Codec.TANS else _TANS_GAIN
                best = found if found.n_bytes < best.n_bytes * gain else best
    return best


def _smoothed(counts: np.ndarray, reach: int, share: float) -> np.ndarray:
    """Take noise out of counts: 64ths as int64, positive for the same symbols."""
    used = np.flatnonzero(counts)
    logs = np.log2(counts[used])
    kernel = np.full(2 * reach + 1, 1.0 / (2 * reach + 1))
    near = np.convolve(np.pad(logs, reach, mode="edge"), kernel, "valid")
    out = np.zeros(counts.size, dtype=np.int64)
    out[used] = np.maximum(1, np.rint(64 * np.exp2((1 - share) * logs + share * near)))
    return out


def _prefix_cost(counts: np.ndarray, modelled: np.ndarray, max_length: int) -> ChosenCode:
    """Return the prefix code for modelled counts with its bytes for the true ones."""
    code = PrefixCode.from_counts(modelled, max_length)
    n_bytes = -(-code.payload_bits(counts) // 8) + len(code.to_bytes())
    return ChosenCode(Codec.HUFFMAN, code, n_bytes)


def _prefix_choice(counts: np.ndarray, prefer: Prefer) -> ChosenCode:
    """Return the best prefix code: of up to 12 bits, or 13 where that is smaller."""
    choices = []
    lengths = (_DEFAULT_CODE_LENGTH, MAX_CODE_LENGTH) if prefer is Prefer.SIZE else (_DEFAULT_CODE_LENGTH,)
    for max_length in lengths:
        choices.append(_prefix_cost(counts, counts, max_length))
        code = choices[-1].code
        if isinstance(code, PrefixCode) and code.max_length < _DEFAULT_CODE_LENGTH:
            break
    return min(choices, key=lambda c: c.n_bytes)


def _tans_choice(
    counts: np.ndarray, resolution: int, n_substreams: int, modelled: np.ndarray | None = None
) -> ChosenCode:
    code = TansCode.from_counts(counts if modelled is None else modelled, resolution, MAX_TABLE_LOG2)
    payload = code.payload_bits(counts) / 8 + _TANS_STATE_BYTES * n_substreams
    return ChosenCode(Codec.TANS, code, payload + len(code.to_bytes()))
