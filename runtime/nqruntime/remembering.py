"""What was measured on this machine, kept for later sessions in the cache folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nqformat.cache_folder import cache_folder, read_cached, write_cached

_known: dict[tuple[str, str], dict[str, Any]] = {}


def recall(what: str, key: str) -> dict[str, Any]:
    """Return what was kept, in this process or another of this user; empty if nothing was."""
    found = _known.get((what, key))
    if found is not None:
        return dict(found)
    path = _path(what, key)
    content = None if path is None else read_cached(path)
    try:
        kept = json.loads(content) if content is not None else {}
    except ValueError:
        kept = {}
    _known[what, key] = kept if isinstance(kept, dict) else {}
    return dict(_known[what, key])


def keep(what: str, key: str, measured: dict[str, Any]) -> None:
    """Keep a measurement for later, where there is a cache folder also for other processes."""
    if _known.get((what, key)) == measured:
        return
    _known[what, key] = dict(measured)
    path = _path(what, key)
    if path is not None:
        write_cached(path, json.dumps(measured).encode())


def forget() -> None:
    """Forget what this process knows; files stay."""
    _known.clear()


def _path(what: str, key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"{what}-{key[:32]}.json"
