"""Metadata: a JSON object with nothing that varies between equal runs (spec 8.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import CorruptError

_SECTION = "METADATA"


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Serialize compactly with sorted keys; ValueError or TypeError for what JSON cannot hold."""
    text = json.dumps(
        dict(metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CorruptError("a JSON key stands twice", section=_SECTION)
    return found


def _no_constant(text: str) -> float:
    raise CorruptError(f"{text} is not JSON", section=_SECTION)


def decode_metadata(plain: bytes) -> dict[str, Any]:
    """Parse strictly: one object, no duplicate keys, no NaN; CorruptError otherwise."""
    try:
        parsed = json.loads(
            plain.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptError(f"metadata is not JSON: {error}", section=_SECTION) from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, CorruptError):
            raise
        raise CorruptError(
            "metadata is nested too deeply or holds a number too long", section=_SECTION
        ) from None
    if not isinstance(parsed, dict):
        raise CorruptError("metadata is not a JSON object", section=_SECTION)
    return parsed
