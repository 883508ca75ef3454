"""Long fuzzing runs that can be stopped and taken up again: ``python -m fuzz.run`` (``make fuzz``).

Mutants are read in a child process with a ceiling on its memory; one that ends the child is kept like any
other failing input, and the run goes on behind it. Progress is saved after each batch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import signal
import struct
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from mmap import mmap
from pathlib import Path

import nqformat
from benchmarks.harness import machine, write

from . import campaign, target
from .golden import golden_files

STATE = Path(__file__).parents[1] / ".fuzz"
EXTRA_ADDRESS_BYTES = 1 << 30
SILENT_SECONDS = 120.0
_NUMBER = struct.Struct("<q")


@dataclass(slots=True)
class Progress:
    """How far a campaign has come; everything that is saved."""

    kind: str
    seed: int
    golden_sha256: str
    lanes: list[str]
    n_done: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    most_extra_bytes: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    failures: list[list[int | str]] = field(default_factory=list)

    @classmethod
    def of(cls, kind: str, seed: int, lanes: list[str], folder: Path) -> Progress:
        """Return what was saved for this kind, seed and set of golden files, or a fresh start."""
        fresh = cls(kind=kind, seed=seed, golden_sha256=golden_sha256(), lanes=lanes)
        path = folder / f"{kind}.json"
        if not path.exists():
            return fresh
        saved = cls(**json.loads(path.read_text()))
        same = (saved.seed, saved.golden_sha256, saved.lanes) == (seed, fresh.golden_sha256, lanes)
        return saved if same else fresh

    def save(self, folder: Path) -> None:
        """Write the state; a stop in between leaves the previous one."""
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{self.kind}.part"
        part.write_text(json.dumps(asdict(self)))
        os.replace(part, folder / f"{self.kind}.json")

    def add(self, outcome: BatchOutcome) -> None:
        """Count a batch."""
        counts = Counter(self.verdicts) + Counter(outcome.verdicts)
        self.verdicts = dict(sorted(counts.items()))
        self.failures += [[number, what] for number, what in outcome.failures]
        self.most_extra_bytes = max(self.most_extra_bytes, outcome.most_extra_bytes)
        self.cpu_seconds += outcome.cpu_seconds
        self.n_done = sum(self.verdicts.values())


@dataclass(slots=True)
class BatchOutcome:
    """What a child process found, or how it ended."""

    verdicts: dict[str, int] = field(default_factory=dict)
    failures: list[tuple[int, str]] = field(default_factory=list)
    most_extra_bytes: int = 0
    cpu_seconds: float = 0.0


def golden_sha256() -> str:
    """Digest of all golden files, which the mutants depend on."""
    digest = hashlib.sha256()
    for name, content in golden_files().items():
        digest.update(name.encode() + content)
    return digest.hexdigest()


def run_batch(kind: str, seed: int, numbers: range, lanes: tuple[str, ...]) -> BatchOutcome:
    """Run one batch in a child process, started again behind each mutant that ends it."""
    total = BatchOutcome()
    verdicts: Counter[str] = Counter()
    start = numbers.start
    while start < numbers.stop:
        done, outcome = _run_child(kind, seed, range(start, numbers.stop), lanes)
        verdicts.update(outcome.verdicts)
        total.failures += outcome.failures
        total.most_extra_bytes = max(total.most_extra_bytes, outcome.most_extra_bytes)
        total.cpu_seconds += outcome.cpu_seconds
        start = done
    total.verdicts = dict(verdicts)
    return total


def _run_child(kind: str, seed: int, numbers: range, lanes: tuple[str, ...]) -> tuple[int, BatchOutcome]:
    """Fork, wait, and return the first number that was not read, with what was found."""
    current = mmap(-1, _NUMBER.size)
    _NUMBER.pack_into(current, 0, numbers.start)
    reader, writer = os.pipe()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(kind, seed, numbers, lanes, current=current, writer=writer)
    os.close(writer)
    status = _wait(child, current)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    if status == 0 and said:
        found = BatchOutcome(**json.loads(said))
        found.cpu_seconds = cpu
        return numbers.stop, found
    number = int(_NUMBER.unpack_from(current)[0])
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    verdicts = {"crashed": 1}
    if number > numbers.start:
        verdicts["not counted by verdict"] = number - numbers.start
    return number + 1, BatchOutcome(verdicts, [(number, f"the process ended: {how}")], 0, cpu)


def _wait(child: int, current: mmap) -> int:
    """Wait for the child; one that stays at a mutant without end is killed."""
    seen, since = -1, time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        number = int(_NUMBER.unpack_from(current)[0])
        if number != seen:
            seen, since = number, time.monotonic()
        elif time.monotonic() - since > SILENT_SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _child(
    kind: str, seed: int, numbers: range, lanes: tuple[str, ...], *, current: mmap, writer: int
) -> None:
    """Read the mutants, send what was found, end the process."""
    code = 1
    try:
        _limit_memory()
        found = campaign.run(
            kind, seed, numbers, lanes=lanes, announce=lambda number: _NUMBER.pack_into(current, 0, number)
        )
        outcome = BatchOutcome(dict(found.verdicts), found.failures, found.most_extra_bytes)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(asdict(outcome)).encode())
        code = 0
    finally:
        os._exit(code)


def _limit_memory() -> None:
    """Let the process grow by EXTRA_ADDRESS_BYTES of address space at most, where the system can say so."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        ceiling = int(statm.read_text().split()[0]) * resource.getpagesize() + EXTRA_ADDRESS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))


def keep_failures(progress: Progress, folder: Path) -> None:
    """Save the mutants that failed, to be read again."""
    for number, what in progress.failures:
        path = folder / "failing" / f"{progress.kind}-{progress.seed}-{number}.nqz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(campaign.mutant(progress.kind, progress.seed, int(number)))
            print(f"{path}: {what}", file=sys.stderr)


def run_kind(progress: Progress, wanted: int, batch: int, until: float, folder: Path) -> None:
    """Run until `wanted` mutants are read or the clock (``time.monotonic``) shows `until`."""
    for numbers in campaign.batches(range(progress.n_done, wanted), batch):
        if time.monotonic() >= until:
            return
        started = time.monotonic()
        progress.add(run_batch(progress.kind, progress.seed, numbers, tuple(progress.lanes)))
        progress.wall_seconds += time.monotonic() - started
        progress.save(folder)
        keep_failures(progress, folder)
        print(
            f"{progress.kind}: {progress.n_done:,} of {wanted:,}, {progress.cpu_seconds:.0f} s CPU, "
            f"{len(progress.failures)} failures",
            flush=True,
        )


def write_results(found: list[Progress]) -> Path:
    """Write benchmarks/results/fuzz.json."""
    return write(
        "fuzz",
        {
            "machine": machine("numpy", "numba"),
            "nqformat": nqformat.__version__,
            "golden_files": len(golden_files()),
            "golden_bytes": sum(map(len, golden_files().values())),
            "materialised_bytes_limit": target.MATERIALISED_BYTES,
            "slack_bytes": campaign.SLACK_BYTES,
            "cpu_seconds_limit": campaign.CPU_SECONDS,
            "campaigns": [asdict(progress) for progress in found],
        },
    )


def main() -> int:
    """Run both campaigns; exit code 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("--structured", type=int, default=1_000_000, help="mutants with repaired checksums")
    parser.add_argument("--random", type=int, default=1_000_000, help="mutants of random bytes")
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time; run again to go on")
    parser.add_argument("--lanes", default="numpy,numba", help="values of NQFORMAT_KERNELS, taken in turn")
    parser.add_argument("--state", type=Path, default=STATE)
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.seconds
    found = []
    campaign.warm_up(tuple(arguments.lanes.split(",")))
    for kind in campaign.KINDS:
        progress = Progress.of(kind, arguments.seed, arguments.lanes.split(","), arguments.state)
        run_kind(progress, getattr(arguments, kind), arguments.batch, until, arguments.state)
        found.append(progress)
    print(f"wrote {write_results(found)}")
    return 1 if any(progress.failures for progress in found) else 0


if __name__ == "__main__":
    sys.exit(main())
