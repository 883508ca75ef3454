"""The tables that the README shows of benchmarks/results/inference.json."""

from __future__ import annotations

import re
from typing import Any

_CLUSTERED = re.compile(r"FC (.*), 16 clusters, batch (\d+)$")
_PEERS = ("torch", "ort int8", "ort 4-bit", "scipy CSR")
_MEGA = 1e6


def inference(results: dict[str, Any]) -> list[str]:
    """Tables of times, of 16 clusters by batch, and of processes."""
    rows = results["rows"]
    batches = {label: found.groups() for label in rows if (found := _CLUSTERED.match(label))}
    lines = [
        f"On {results['machine']['cpu']}, {results['machine']['processors']} processors; best of "
        f"{results['rounds']} rounds in which the engines take turns, load average {_loads(rows)}. CPU time",
        "of one thread, wall time of two. Times of others are multiples of the native engine's, above 1",
        "where it is faster; peers with one thread, int8 is dynamic, both int8 and 4-bit give other outputs",
        "(`benchmarks/inference.py`):",
        "",
        "| layer or network | native, us | ONNX Runtime fp32 | 2 threads | PyTorch | ORT int8 | ORT 4-bit | "
        "scipy CSR | weight memory, of fp32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(label, row) for label, row in rows.items() if label not in batches and "1" in row]
    if batches:
        lines += ["", *_clustered(rows, batches)]
    if processes := results.get("processes"):
        lines += ["", *_processes(processes)]
    return lines


def _loads(rows: dict[str, Any]) -> str:
    """Smallest and largest load of the machine when rows were measured."""
    loads = [one["load_average"] for row in rows.values() for one in row.values() if one.get("load_average")]
    return f"{min(loads):.0f} to {max(loads):.0f}" if loads else "unknown"


def _ratio(row: dict[str, Any] | None, engine: str) -> str:
    times = row["milliseconds"] if row is not None else {}
    if engine not in times:
        return ""
    return f"{times[engine]['best'] / times['native']['best']:.2f}"


def _line(label: str, row: dict[str, Any]) -> str:
    one = row["1"]
    held = one["weight_bytes"]
    cells = [
        label,
        f"{1000 * one['milliseconds']['native']['best']:,.1f}",
        _ratio(one, "ort"),
        _ratio(row.get("2"), "ort"),
        *(_ratio(one, peer) for peer in _PEERS),
        f"{held['native'] / held['ort']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _clustered(rows: dict[str, Any], found: dict[str, tuple[str, ...]]) -> list[str]:
    """One line for each shape; ratios to ONNX Runtime with 1 and 2 threads."""
    batches = sorted({int(batch) for _, batch in found.values()})
    lines = [
        "Fully connected, outputs x inputs, 16 clusters: ONNX Runtime fp32 over native, 1 / 2 threads:",
        "",
        f"| outputs x inputs | {' | '.join(f'batch {n}' for n in batches)} | int8, 4-bit at batch 1 |",
        f"|---|{'---|' * (len(batches) + 1)}",
    ]
    for shape in dict.fromkeys(shape for shape, _ in found.values()):
        labels = {n: f"FC {shape}, 16 clusters, batch {n}" for n in batches}
        cells = [
            " / ".join(_ratio(rows.get(label, {}).get(threads), "ort") for threads in ("1", "2"))
            for label in labels.values()
        ]
        one = rows.get(labels[1], {}).get("1")
        cells.append(f"{_ratio(one, 'ort int8')}, {_ratio(one, 'ort 4-bit')}")
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    return lines


def _processes(processes: dict[str, Any]) -> list[str]:
    lines = [
        "A new process with kernels in the cache: CPU seconds from its start to the first output, peak and",
        "later resident memory in MB (native / ONNX Runtime / PyTorch):",
        "",
        "| network | CPU seconds | peak | steady |",
        "|---|---|---|---|",
    ]
    for label, engines in processes.items():
        cells = [
            " / ".join(f"{engine['cpu_seconds']:.2f}" for engine in engines.values()),
            " / ".join(f"{engine['peak_bytes'] / _MEGA:.0f}" for engine in engines.values()),
            " / ".join(f"{engine['steady_bytes'] / _MEGA:.0f}" for engine in engines.values()),
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines
