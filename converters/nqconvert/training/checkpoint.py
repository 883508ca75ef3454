"""Checkpoints of a training run: plain tensors, numbers and strings in one file, replaced atomically."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

from nqformat.errors import ConversionError

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = 2


def save_checkpoint(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write `content` beside `path` and move it there: an interruption leaves the old file or the new."""
    import torch

    target = Path(path)
    handle, written = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": _FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, target)
    except BaseException:
        os.unlink(written)
        raise


def load_checkpoint(path: str | os.PathLike[str], fingerprint: str) -> dict[str, Any] | None:
    """Return the content of a checkpoint, loaded without unpickling code; None if there is no file.

    Raises
    ------
    ConversionError
        If the file is no checkpoint of ours, or one of another run (its fingerprint differs).
    """
    import torch

    if not os.path.exists(path):
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ConversionError(f"{os.fspath(path)} is not a training checkpoint: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ConversionError(f"{os.fspath(path)} is not a training checkpoint of this version")
    if content.get("fingerprint") != fingerprint:
        raise ConversionError(
            f"{os.fspath(path)} belongs to a run with another model or other settings; "
            "give another path, delete it or pass resume=False"
        )
    return content
