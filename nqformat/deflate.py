"""Raw deflate behind a preset dictionary, with a declared, bounded inflated length (spec 3.7)."""

from __future__ import annotations

import zlib

from .errors import CorruptError, LimitExceededError
from .preset_dictionary import PRESET_DICTIONARY


def deflate(plain: bytes) -> bytes:
    """Compress to a raw deflate stream (RFC 1951), level 9; the same bytes for the same zlib."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, PRESET_DICTIONARY)
    return compressor.compress(plain) + compressor.flush()


def inflate(stored: bytes | memoryview, plain_bytes: int, limit_bytes: int, section: str) -> bytes:
    """Inflate to exactly `plain_bytes`.

    Raises
    ------
    LimitExceededError
        If `plain_bytes` exceeds `limit_bytes`; nothing is inflated then.
    CorruptError
        If the stream is damaged, or its length is another, or bytes follow it.
    """
    if plain_bytes > limit_bytes:
        raise LimitExceededError(f"{plain_bytes} bytes declared, limit {limit_bytes}", section=section)
    inflater = zlib.decompressobj(-15, PRESET_DICTIONARY)
    try:
        plain = inflater.decompress(stored, plain_bytes + 1)
    except zlib.error as error:
        raise CorruptError(f"deflate stream is damaged: {error}", section=section) from None
    if len(plain) != plain_bytes or not inflater.eof or inflater.unused_data:
        raise CorruptError("deflate stream does not have its declared length", section=section)
    return plain
