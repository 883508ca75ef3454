"""The chunk grid: how slices of a stream fall into chunks that decode alone (spec 4.4)."""

from __future__ import annotations

from dataclasses import dataclass

MIN_CHUNK_LOG2 = 14
MAX_CHUNK_LOG2 = 20
DEFAULT_CHUNK_LOG2 = 16
FOUR_STREAMS_FROM = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkPart:
    """Elements `start:stop` of slice number `slice_index`, held by one chunk."""

    slice_index: int
    start: int
    stop: int

    @property
    def n_elements(self) -> int:
        """Elements in this part."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSpan:
    """A chunk's parts in order; every part but the first starts its slice."""

    parts: tuple[ChunkPart, ...]

    @property
    def continues_slice(self) -> bool:
        """Whether the chunk starts inside a slice."""
        return self.parts[0].start > 0


def chunk_grid(slice_lengths: list[int], chunk_log2: int) -> list[ChunkSpan]:
    """Lay slices out in chunks of at most ``2**chunk_log2`` elements.

    A slice that fits into the room left in the last chunk is put there whole; any other starts a new chunk
    and fills as many as it needs. Empty slices are in no chunk.
    """
    capacity = 1 << chunk_log2
    chunks: list[list[ChunkPart]] = []
    room = 0
    for index, length in enumerate(slice_lengths):
        if length == 0:
            continue
        if length <= room:
            chunks[-1].append(ChunkPart(slice_index=index, start=0, stop=length))
            room -= length
            continue
        for start in range(0, length, capacity):
            stop = min(length, start + capacity)
            chunks.append([ChunkPart(slice_index=index, start=start, stop=stop)])
            room = capacity - (stop - start)
    return [ChunkSpan(parts=tuple(parts)) for parts in chunks]


def n_substreams(n_symbols: int, four_allowed: bool) -> int:
    """Sub-streams of a chunk: four from 4,096 symbols on, else one."""
    return 4 if four_allowed and n_symbols >= FOUR_STREAMS_FROM else 1


def substream_bounds(n_symbols: int, n_streams: int) -> list[int]:
    """Symbol bounds of the sub-streams: contiguous quarters of ceil(n / 4) symbols, the last one shorter."""
    quarter = -(-n_symbols // n_streams)
    return [min(i * quarter, n_symbols) for i in range(n_streams + 1)]
