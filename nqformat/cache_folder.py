"""The folder of this user for what is found out once: compiled kernels, and which engine is faster.

It is ``NQFORMAT_CACHE_DIR`` if that is set (an empty value switches the cache off), else a folder
``nqformat`` in the user's own cache. What another user may have written is not read.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

__all__ = ["cache_folder", "read_cached", "write_cached"]


def cache_folder() -> Path | None:
    """Return the folder, which may not exist yet; None if there is no cache."""
    chosen = os.environ.get("NQFORMAT_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "nqformat" if base and os.path.isabs(base) else None


def read_cached(path: Path) -> bytes | None:
    """Return what a file of the cache holds; None without it, or if others may have written it."""
    try:
        with open(path, "rb") as stream:
            return stream.read() if _is_ours(os.fstat(stream.fileno())) else None
    except OSError:
        return None


def _is_ours(found: os.stat_result) -> bool:
    """Whether only this user (or root) may have written the file."""
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def write_cached(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it; a fault is no error."""
    temporary = path.with_name(f"{path.name}.{os.urandom(4).hex()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as stream:
                stream.write(content)
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
