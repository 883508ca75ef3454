"""Words of fixed width for the nonzeros of pruned weights.

A word stands for a run of zeros and the nonzero that ends it, or for zeros alone: the byte of relative
indices (Han et al. 2015, section 3, with a filler that carries no value), but with a table that gives the
longest runs to the values that are most frequent. Decoding is a look-up of how far each word advances and
which value it writes there, so that graphs of plain operators can do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

__all__ = ["WordTable", "best_words"]

_SHORTEST_RUNS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 14, 15, 16, 20, 24, 32, 48, 64, 96, 128, 192, 252)
_FILLERS = (1, 2, 3, 4, 6, 8, 12, 16)
_COUNTED_RUN = 2048
_WORD_COST = 2
"""Words that one more entry of the tables must save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTable:
    """What words stand for: first come those of code 0 by their gap, then those of code 1, at last fillers.

    Attributes
    ----------
    limits : ndarray of int64, shape (n_codes,)
        Words of code c have gaps 0 to ``limits[c] - 1``.
    run : int
        Filler j stands for ``(j + 1) * run`` zeros; no limit is below `run`.
    n_fillers : int
    """

    limits: np.ndarray
    run: int
    n_fillers: int

    @property
    def first_filler(self) -> int:
        """Number of the first filler: words below it end in a nonzero."""
        return int(self.limits.sum())

    @property
    def n_words(self) -> int:
        """Number of words."""
        return self.first_filler + self.n_fillers

    def advances(self) -> np.ndarray:
        """Return how many elements each word stands for; ndarray of int64, shape (n_words,)."""
        starts = np.cumsum(self.limits) - self.limits
        gaps = np.arange(self.first_filler) - np.repeat(starts, self.limits)
        return np.append(gaps + 1, self.run * np.arange(1, self.n_fillers + 1))

    def codes(self) -> np.ndarray:
        """Return 1 + the code at the end of each word, 0 for fillers; ndarray of int64, shape (n_words,)."""
        found = np.repeat(np.arange(1, self.limits.size + 1), self.limits)
        return np.append(found, np.zeros(self.n_fillers, np.int64))

    def encode(self, gaps: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the words for some nonzeros; ndarray of int64.

        Parameters
        ----------
        gaps, codes : ndarray of int64, shape (n_nonzeros,)
            Zeros before each nonzero, and its value's number.
        """
        units = self._units(gaps, codes)
        ends = np.cumsum(1 - (-units // self.n_fillers)) - 1
        words = np.full(int(ends[-1]) + 1 if ends.size else 0, self.n_words - 1, dtype=np.int64)
        starts = np.cumsum(self.limits) - self.limits
        words[ends] = starts[codes] + gaps - units * self.run
        shorter = units % self.n_fillers
        words[ends[shorter > 0] - 1] = self.first_filler + shorter[shorter > 0] - 1
        return words

    def _units(self, gaps: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return how many runs fillers must take from each gap."""
        beyond = np.maximum(gaps - self.limits[codes] + 1, 0)
        return np.asarray(-(-beyond // self.run))


def best_words(gaps: np.ndarray, codes: np.ndarray, *, most_words: int) -> WordTable | None:
    """Return the table that takes the fewest words, or None if there are too many codes.

    Parameters
    ----------
    gaps, codes : ndarray of int64, shape (n_nonzeros,)
        Not empty.
    most_words : int
    """
    n_codes = int(codes.max()) + 1
    flat = codes * _COUNTED_RUN + np.minimum(gaps, _COUNTED_RUN - 1)
    counts = np.bincount(flat, minlength=n_codes * _COUNTED_RUN).reshape(n_codes, _COUNTED_RUN)
    found = [
        _limited(counts, run, n_fillers, most_words)
        for run, n_fillers in product(_SHORTEST_RUNS, _FILLERS)
        if n_codes * run + n_fillers <= most_words
    ]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _limited(counts: np.ndarray, run: int, n_fillers: int, most_words: int) -> tuple[int, WordTable]:
    """Share the words that are left among the codes; return words for fillers and the table.

    A limit raised from L to L + 1 saves a word for each gap L, L + b, L + 2 b, ... b being the longest
    filler.
    """
    n_codes, longest = counts.shape[0], run * n_fillers
    padded = np.zeros((n_codes, -(-counts.shape[1] // longest) * longest), np.int64)
    padded[:, : counts.shape[1]] = counts
    blocks = padded.reshape(n_codes, -1, longest)
    saved = np.cumsum(blocks[:, ::-1], axis=1)[:, ::-1].reshape(n_codes, -1)[:, run:]
    worth = np.minimum.accumulate(saved, axis=1)
    left = most_words - n_codes * run - n_fillers
    limits = np.full(n_codes, run, np.int64)
    if left and worth.size:
        best = np.argsort(-worth, axis=None, kind="stable")[:left]
        best = best[worth.reshape(-1)[best] > _WORD_COST]
        limits += np.bincount(best // worth.shape[1], minlength=n_codes)
    used = np.arange(saved.shape[1]) >= (limits - run)[:, None]
    table = WordTable(limits=limits, run=run, n_fillers=n_fillers)
    return int(saved[used].sum()) + _WORD_COST * table.n_words, table
