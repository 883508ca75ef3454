"""Exported files: sizes by form, cost in ONNX Runtime, round trips, programs that run them."""

from __future__ import annotations

from typing import Any

_SHOWN_FORMS = ("dense", "codebook", "sparse", "auto", "qdq", "ort-nbits")


def onnx_forms(results: dict[str, Any]) -> list[str]:
    """Tables of export forms, their cost in ONNX Runtime, and round trips."""
    parts = (
        _sizes(results.get("forms", {})),
        _costs(results.get("costs", {})),
        _round_trips(results.get("round_trips", {})),
    )
    lines: list[str] = []
    for part in filter(None, parts):
        lines += [*part, ""]
    return lines[:-1]


def _sizes(forms: dict[str, Any]) -> list[str]:
    if not forms:
        return []
    names = [name for name in next(iter(forms.values()))["8 %"] if name in _SHOWN_FORMS]
    lines = [
        "Bytes of exported files, random weights rounded to 16 steps; largest difference from the",
        "decoded weights in ONNX Runtime, over the largest output (`benchmarks/onnx_models.py`):",
        "",
        f"| network | density | {' | '.join(names)} | largest difference |",
        f"|---|---|{'---|' * (len(names) + 1)}",
    ]
    for network, densities in forms.items():
        for density, row in densities.items():
            made = {name: row[name] for name in names if "bytes" in row[name]}
            worst = max(cell["max_difference"] for cell in made.values())
            cells = " | ".join(f"{made[name]['bytes']:,}" if name in made else "" for name in names)
            lines.append(f"| {network} | {density} | {cells} | {worst:.1g} |")
    return lines


def _costs(costs: dict[str, Any]) -> list[str]:
    if not costs:
        return []
    lines = [
        "Forms over `dense` in ONNX Runtime, one thread, and the difference of outputs:",
        "",
        "| network | `codebook` run time | memory to load | difference | `sparse` run time | memory |",
        "|---|---|---|---|---|---|",
    ]
    for network, row in costs.items():
        runs, memory = row["run_ratio"], row["resident_ratio"]
        lines.append(
            f"| {network} | {runs['codebook']:.2f} | {memory['codebook']:.2f} | {row['difference']:.1g} "
            f"| {runs['sparse']:.2f} | {memory['sparse']:.2f} |"
        )
    return lines


def _round_trips(trips: dict[str, Any]) -> list[str]:
    if not trips:
        return []
    exact = [name for name, row in trips.items() if row["same_graph"] and not row["differing_tensors"]]
    rest = [name for name in trips if name not in exact]
    said = f" Not: {', '.join(rest)}." if rest else ""
    return [
        f".onnx -> .nqz (lossless) -> .onnx: {len(exact)} of {len(trips)} models come back with every "
        f"tensor bit-identical and the same graph.{said}",
        f"They are {', '.join(exact)}.",
    ]


def onnx_large(results: dict[str, Any]) -> list[str]:
    """Table of the steps of a model over 2 GB."""
    steps = results["steps"]
    model_bytes, compared = steps["make"]["bytes"], steps["compare"]
    lines = [
        f"A model of {model_bytes / 1e9:.2f} GB in external data, weights of 16 values, there and back",
        f"without loss: {compared['equal']} of {compared['tensors']} tensors come back bit-identical; each",
        "step in a process of its own, verification of the exports included (`benchmarks/onnx_large.py`):",
        "",
        "| step | bytes | seconds CPU | peak memory over the model | largest difference |",
        "|---|---|---|---|---|",
    ]
    for step in ("convert", "export codebook", "export dense"):
        row = steps[step]
        peak = row["peak_bytes"] / model_bytes
        difference = f"{row['max_difference']:.1g}" if "max_difference" in row else ""
        lines.append(f"| {step} | {row['bytes']:,} | {row['cpu_seconds']:.0f} | {peak:.1f} | {difference} |")
    return lines


def onnx_consumers(results: dict[str, Any]) -> list[str]:
    """Table of programs and the forms that they run to 1e-4 of the largest output."""
    if not results:
        return []
    forms, networks = results["forms"], results["networks"]
    lines = [
        f"Which program runs which form, of {len(networks)} networks ({', '.join(networks)}); equal to 1e-4",
        "(`benchmarks/onnx_consumers.py`):",
        "",
        f"| program | {' | '.join(forms)} |",
        f"|---|{'---|' * len(forms)}",
    ]
    for program, row in results["consumers"].items():
        cells = []
        for form in forms:
            found = [v for k, v in row["models"].items() if k.endswith(f"--{form.replace(' ', '_')}")]
            works = sum(not isinstance(value, str) and value <= 1e-4 for value in found)
            cells.append(f"{works} of {len(found)}")
        lines.append(f"| {program} {row['version']} | {' | '.join(cells)} |")
    return lines
