"""Whatever interrupts a save leaves the old file or the new one, whole."""

from __future__ import annotations

import builtins
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nqformat

CHILD = Path(__file__).with_name("saving_child.py")
OLD = {"seed": np.int64(5), "noise": np.arange(9)}

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed as POSIX systems do")


def child(action: str, path: Path, number: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHILD), action, str(path), str(number)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "m.nqz"
    nqformat.save_file(OLD, path)
    return path


def is_old(path: Path) -> bool:
    return int(nqformat.load_file(path)["seed"]) == 5


@needs_fork
@pytest.mark.parametrize("n_kills", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_a_killed_save_leaves_the_old_file_or_the_new_one(n_kills: int, target: Path) -> None:
    done = child("kills", target, n_kills)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) <= n_kills


@needs_fork
def test_a_save_killed_at_any_call_leaves_the_old_file_or_the_new_one(target: Path) -> None:
    old = target.read_bytes()
    outcomes = []
    for number in range(1, 40):
        done = child("die", target, number)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        outcomes.append(is_old(target))
        assert target.read_bytes() == old or int(nqformat.load_file(target)["seed"]) == 7
    assert len(outcomes) >= 8
    assert outcomes == sorted(outcomes, reverse=True), "the new file never goes back to the old one"
    assert not is_old(target)


@needs_fork
@pytest.mark.parametrize("most_bytes", [0, 1, 31, 4096, 100_000, 199_999])
def test_a_file_that_cannot_grow_leaves_the_old_one(most_bytes: int, target: Path) -> None:
    done = child("full", target, most_bytes)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    assert is_old(target) and os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("failing", ["write", "fsync", "replace", "close"])
def test_a_failing_call_leaves_the_old_file_and_says_why(
    number: int, failing: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    class FailingFile:
        def __init__(self, *arguments: Any) -> None:
            self._file = builtins.open(*arguments)  # noqa: SIM115 (closed by __exit__)

        def __enter__(self) -> FailingFile:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()
            if failing == "close":
                fail()

        def write(self, content: bytes) -> None:
            self._file.write(content[: len(content) // 2])
            if failing == "write":
                fail()
            self._file.write(content[len(content) // 2 :])

        def fileno(self) -> int:
            return self._file.fileno()

    if failing in ("fsync", "replace"):
        monkeypatch.setattr(os, failing, fail)
    else:
        monkeypatch.setattr("nqformat.files.open", FailingFile, raising=False)
    with pytest.raises(OSError) as caught:
        nqformat.save_file({"seed": np.int64(7)}, target)
    monkeypatch.undo()
    assert caught.value.errno == number
    assert is_old(target) and os.listdir(target.parent) == [target.name]


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(target: Path) -> None:
    for path in (target.parent / "missing" / "m.nqz", target / "m.nqz", Path("/proc/self/m.nqz")):
        with pytest.raises(OSError):
            nqformat.save_file({"a": np.zeros(3)}, path)
    assert is_old(target)


@needs_fork
def test_a_read_only_folder_is_refused_and_stays_as_it_is(target: Path) -> None:
    target.parent.chmod(0o555)
    previous = os.geteuid()
    try:
        if previous == 0:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            nqformat.save_file({"a": np.zeros(3)}, target)
    finally:
        os.seteuid(previous)
        target.parent.chmod(0o755)
    assert is_old(target)


def test_a_link_is_replaced_and_what_it_points_to_is_not_written(target: Path) -> None:
    link = target.parent / "link.nqz"
    link.symlink_to(target.name)
    nqformat.save_file({"seed": np.int64(7)}, link)
    assert is_old(target) or link.is_symlink()
    assert int(nqformat.load_file(link)["seed"]) == 7


def test_reads_that_give_less_than_asked_for_are_truncated_files(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = target.read_bytes()
    for n_bytes in (0, 1, 8, 31, 32, 33, len(content) - 1):
        target.write_bytes(content[:n_bytes])
        with pytest.raises(nqformat.TruncatedError):
            nqformat.load_file(target)
        with pytest.raises(nqformat.TruncatedError):
            nqformat.safe_open(target)


@needs_fork
def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        nqformat.load_file(tmp_path)
    with pytest.raises(nqformat.FormatError):
        nqformat.safe_open("/dev/null")
    with pytest.raises(nqformat.FormatError):
        nqformat.load_file("/dev/zero")
