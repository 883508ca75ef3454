"""Atomic file replacement."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced_when_done(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block ends well.

    The file is synced before and the folder after the rename, where the system allows it. An existing
    file's permission
    bits are kept; a new one gets those the process's umask gives. If the block raises, the temporary file
    is removed and an existing file stays as it was.

    Raises
    ------
    OSError
        As the system reports it.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    temporary = target.parent / f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part"
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def write_atomically(path: str | os.PathLike[str], pieces: Iterable[bytes]) -> int:
    """Write `pieces` to `path`; a fault leaves the old file, or none, but never half of one.

    Returns
    -------
    int
        Bytes written.
    """
    n_bytes = 0
    with replaced_when_done(path) as temporary, open(temporary, "wb") as stream:
        for piece in pieces:
            stream.write(piece)
            n_bytes += len(piece)
    return n_bytes


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
