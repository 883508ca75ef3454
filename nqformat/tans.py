"""Table-based asymmetric numeral systems, the second entropy code (spec 5.3).

Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540, section on tANS; the stride of the spread is the
one of Collet's FSE.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .bits import BitReader, BitWriter
from .cursor import ByteCursor, encode_varint
from .errors import CorruptError
from .kernels import TansTables

KIND_TANS = 2
MIN_TABLE_LOG2 = 5
MAX_TABLE_LOG2 = 12
MAX_ALPHABET = 256
MAX_RESOLUTION = 3
MAX_HALVINGS = 23
SCALES = (16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842)
"""round(2**(24 - j / 8)) for j = 0 to 7 (spec 5.3)."""


def frequencies_of_weights(weights: tuple[int, ...], resolution: int, table_log2: int) -> tuple[int, ...]:
    """Whole frequencies that sum to ``2**table_log2`` from logarithmic weights (spec 5.3).

    Parameters
    ----------
    weights : tuple of int
        -1 for unused symbols, else halvings in steps of ``2**-resolution``: larger is rarer.

    Returns
    -------
    tuple of int
        0 for unused symbols, at least 1 for used ones.
    """
    total = 1 << table_log2
    scaled = []
    for weight in weights:
        eighths = weight << (3 - resolution)
        scaled.append(0 if weight < 0 else SCALES[eighths & 7] >> (eighths >> 3))
    whole = sum(scaled)
    counts = [max(1, s * total // whole) if s else 0 for s in scaled]
    missing = total - sum(counts)
    order = sorted((i for i, s in enumerate(scaled) if s), key=lambda i: (-scaled[i], i))
    while missing:
        for i in order:
            if missing > 0:
                counts[i] += 1
                missing -= 1
            elif missing < 0 and counts[i] > 1:
                counts[i] -= 1
                missing += 1
    return tuple(counts)


@dataclass(frozen=True)
class TansCode:
    """Frequencies of a tANS code, as logarithmic weights.

    Attributes
    ----------
    weights : tuple of int
        -1 for unused symbols; the last symbol is used.
    resolution : int
        Steps of a weight are ``2**-resolution`` halvings; 0 to 3.
    table_log2 : int
        5 to 12; states of the decoder.
    """

    weights: tuple[int, ...]
    resolution: int
    table_log2: int

    @classmethod
    def from_counts(cls, counts: np.ndarray, resolution: int, table_log2: int) -> TansCode:
        """Round the information of each symbol to a weight; at least two counts must be positive."""
        used = np.flatnonzero(counts)
        shares = counts[used] / counts[used].sum()
        steps = np.rint(-np.log2(shares) * (1 << resolution)).astype(np.int64)
        weights = np.full(int(used[-1]) + 1, -1, dtype=np.int64)
        weights[used] = np.minimum(steps - steps.min(), MAX_HALVINGS << resolution)
        return cls(weights=tuple(int(w) for w in weights), resolution=resolution, table_log2=table_log2)

    @cached_property
    def frequencies(self) -> np.ndarray:
        """States of each symbol: int64, shape (256,), sum ``2**table_log2``."""
        found = np.zeros(MAX_ALPHABET, dtype=np.int64)
        found[: len(self.weights)] = frequencies_of_weights(self.weights, self.resolution, self.table_log2)
        return found

    @cached_property
    def symbol_of_state(self) -> np.ndarray:
        """Symbol of each state: uint8, shape (2**table_log2,)."""
        n_states = 1 << self.table_log2
        stride = (n_states >> 1) + (n_states >> 3) + 3
        symbols = np.zeros(n_states, dtype=np.uint8)
        places = np.arange(n_states) * stride % n_states
        symbols[places] = np.repeat(np.arange(MAX_ALPHABET, dtype=np.uint8), self.frequencies)
        return symbols

    @cached_property
    def states_by_symbol(self) -> np.ndarray:
        """States in the order of (symbol, state): uint16, shape (2**table_log2,)."""
        order: np.ndarray = np.argsort(self.symbol_of_state, kind="stable").astype(np.uint16)
        return order

    @cached_property
    def first_place(self) -> np.ndarray:
        """Where each symbol's states begin in :attr:`states_by_symbol`: int64, shape (256,)."""
        return np.concatenate([[0], np.cumsum(self.frequencies)[:-1]]).astype(np.int64)

    @cached_property
    def decode_table(self) -> np.ndarray:
        """Entry of each state: ``n_bits | symbol << 8 | next_state_base << 16``, uint32."""
        counters = np.zeros(1 << self.table_log2, dtype=np.int64)
        places = np.arange(1 << self.table_log2)
        symbols = self.symbol_of_state[self.states_by_symbol].astype(np.int64)
        counters[self.states_by_symbol] = self.frequencies[symbols] + places - self.first_place[symbols]
        n_bits = self.table_log2 + 1 - np.frexp(counters.astype(np.float64))[1]
        base = (counters << n_bits) - (1 << self.table_log2)
        table: np.ndarray = (n_bits | self.symbol_of_state.astype(np.int64) << 8 | base << 16).astype(
            np.uint32
        )
        return table

    @cached_property
    def encode_tables(self) -> TansTables:
        """What the encoding kernels need."""
        return TansTables(
            frequencies=self.frequencies,
            first_place=self.first_place,
            states=self.states_by_symbol,
            table_log2=self.table_log2,
        )

    def payload_bits(self, counts: np.ndarray) -> float:
        """Bits that a stream with these symbol counts takes, without the states at its start."""
        used = np.flatnonzero(counts)
        return float((counts[used] * (self.table_log2 - np.log2(self.frequencies[used]))).sum())

    def to_bytes(self) -> bytes:
        """Serialize as the body of a table record (spec 5.3); the Exp-Golomb order is the best one."""
        best = min((self._written(order) for order in range(4)), key=len)
        return bytes([KIND_TANS]) + best

    def _written(self, order: int) -> bytes:
        writer = BitWriter()
        previous = 0
        symbol = 0
        while symbol < len(self.weights):
            run = 0
            while self.weights[symbol + run] < 0:
                run += 1
            if run:
                writer.put_exp_golomb(0, order)
                writer.put_exp_golomb(run - 1, 0)
                symbol += run
            step = self.weights[symbol] - previous
            writer.put_exp_golomb(1 + (2 * step if step >= 0 else -2 * step - 1), order)
            previous = self.weights[symbol]
            symbol += 1
        head = (self.table_log2 - MIN_TABLE_LOG2) | self.resolution << 3 | order << 5
        return bytes([head]) + encode_varint(len(self.weights)) + writer.to_bytes()

    @classmethod
    def read(cls, cursor: ByteCursor) -> TansCode:
        """Parse a table record after its kind.

        Raises
        ------
        CorruptError
            If a parameter or weight is out of range, or fewer than two symbols or more symbols than states
            are used.
        """
        head = cursor.u8()
        table_log2, resolution, order = MIN_TABLE_LOG2 + (head & 7), head >> 3 & 3, head >> 5 & 3
        n_weights = cursor.varint()
        if head >> 7 or not 2 <= n_weights <= MAX_ALPHABET:
            raise cursor.corrupt(f"tANS table of {n_weights} symbols with parameters {head:#04x}")
        weights = _read_weights(cursor.take(cursor.remaining), n_weights, resolution, order)
        n_used = sum(w >= 0 for w in weights)
        if not 2 <= n_used <= 1 << table_log2:
            raise cursor.corrupt(f"tANS table of 2**{table_log2} states for {n_used} symbols")
        return cls(weights=weights, resolution=resolution, table_log2=table_log2)


def _read_weights(buffer: bytes, n_weights: int, resolution: int, order: int) -> tuple[int, ...]:
    reader = BitReader(buffer, "TABLE")
    weights: list[int] = []
    previous = 0
    while len(weights) < n_weights:
        item = reader.get_exp_golomb(order, max_bits=12)
        if item == 0:
            run = reader.get_exp_golomb(0, max_bits=12) + 1
            weights.extend([-1] * min(run, MAX_ALPHABET + 1))
            continue
        previous += item // 2 if item & 1 else -(item // 2)
        if not 0 <= previous <= MAX_HALVINGS << resolution:
            raise CorruptError(f"tANS weight {previous} is out of range", section="TABLE")
        weights.append(previous)
    if len(weights) != n_weights or weights[-1] < 0:
        raise CorruptError("tANS weights do not end with a used symbol", section="TABLE")
    reader.finish()
    return tuple(weights)
