"""Campaigns: many mutants of the golden files, each made from (seed, number) alone and judged.

A mutant fails if reading it raises a foreign exception, takes too much CPU time or memory, ends the process,
or if a random change is not noticed.
"""

from __future__ import annotations

import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from random import Random
from types import FrameType
from typing import Any

from . import target
from .container import Container, take_apart
from .golden import golden_files
from .guarded import GuardedInput
from .mutators import random_mutant, structured_mutant

KINDS = ("structured", "random")
CPU_SECONDS = 5.0
SLACK_BYTES = 64 << 20
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024
_COMPARED_EVERY = 16
_INSPECTED_EVERY = 8
_UNVERIFIED_EVERY = 4


class HangError(BaseException):
    """One input took more CPU time than allowed."""


@dataclass(slots=True)
class Findings:
    """What a campaign found.

    Attributes
    ----------
    verdicts : Counter of str
        Mutants by verdict: error class of the file, ``read``, or ``partly``.
    failures : list of (int, str)
        Number of the mutant and what was wrong.
    most_extra_bytes : int
        Largest growth of the resident set over its size at the start.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    most_extra_bytes: int = 0


@cache
def _sources() -> tuple[list[bytes], list[Container]]:
    contents = list(golden_files().values())
    return contents, [take_apart(content) for content in contents]


def mutant(kind: str, seed: int, number: int) -> bytes:
    """Return mutant `number` of a campaign; it depends on nothing else but the golden files."""
    contents, containers = _sources()
    rng = Random(f"{kind} {seed} {number}")
    chosen = rng.randrange(len(contents))
    if kind == "random":
        return random_mutant(rng, contents[chosen])
    return structured_mutant(rng, containers[chosen], containers)


def judge(kind: str, number: int, content: bytes | memoryview, lanes: tuple[str, ...]) -> str:
    """Read one mutant in one lane, sometimes in all, and return its verdict.

    Raises
    ------
    Exception
        What the reader may not raise; AssertionError for an unnoticed change or lanes that disagree.
    """
    target.with_kernels(lanes[number % len(lanes)])
    found = target.read_everything(content)
    said = target.verdict(found)
    if kind == "random":
        assert said != "read", "a random change was not noticed"
        if number % _UNVERIFIED_EVERY == 0:
            target.read_everything(content, verify=False)
    elif number % _INSPECTED_EVERY == 0:
        target.inspect(content)
    if len(lanes) > 1 and number % _COMPARED_EVERY == 0:
        target.with_kernels(lanes[(number + 1) % len(lanes)])
        other = target.read_everything(content)
        assert other == found, "the kernels' paths differ"
    return said


def run(
    kind: str,
    seed: int,
    numbers: range,
    *,
    lanes: tuple[str, ...] = ("numpy",),
    announce: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Read the mutants of `numbers` and return what was found.

    Parameters
    ----------
    kind : {"structured", "random"}
    lanes : tuple of str
        Values of ``NQFORMAT_KERNELS`` to take in turn.
    announce : callable
        Told the number of each mutant before it is read, so that a crash can be traced.
    """
    findings = Findings()
    room = GuardedInput()
    warm_up(lanes)
    start = resident_peak()
    ceiling = start + target.MATERIALISED_BYTES + SLACK_BYTES
    with _cpu_alarm() as alarm:
        for number in numbers:
            announce(number)
            content = mutant(kind, seed, number)
            alarm(CPU_SECONDS)
            try:
                findings.verdicts[judge(kind, number, room.place(content), lanes)] += 1
            except (Exception, HangError) as error:
                findings.failures.append((number, f"{type(error).__name__}: {error}"))
                findings.verdicts["failed"] += 1
            finally:
                alarm(0)
            peak = resident_peak()
            if peak > ceiling:
                findings.failures.append((number, f"resident set grew by {peak - start} bytes"))
                ceiling = peak + SLACK_BYTES
    findings.most_extra_bytes = resident_peak() - start
    return findings


def warm_up(lanes: tuple[str, ...]) -> None:
    """Load the kernels, so that their memory is not counted as that of an input."""
    for lane in lanes:
        target.with_kernels(lane)
        for content in _sources()[0]:
            target.read_everything(content)


def resident_peak() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


class _cpu_alarm:  # noqa: N801 (a context manager that reads like a function)
    """Raises HangError in the main thread once the CPU time that was set is used up."""

    def __enter__(self) -> Callable[[float], None]:
        self._previous: Any = signal.signal(signal.SIGPROF, self._hang)
        return lambda seconds: signal.setitimer(signal.ITIMER_PROF, seconds) and None

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._previous)

    def _hang(self, _number: int, _frame: FrameType | None) -> None:
        raise HangError(f"more than {CPU_SECONDS} s of CPU time")


def batches(numbers: range, n_numbers: int) -> Iterator[range]:
    """Cut a range into ranges of at most `n_numbers`."""
    for start in range(numbers.start, numbers.stop, n_numbers):
        yield range(start, min(start + n_numbers, numbers.stop))
