"""Curves of bytes and accuracy from the rows of posttraining.json, compared at equal accuracy.

A curve is monotone regression over the settings of one method, so that no lucky point counts, and between
points the logarithm of bytes is linear in the accuracy. NNCodec has a curve for each of its modes and the
smallest counts; method obs has one for each calibration seed and the mean counts. "Luckiest" compares with
the smallest of all of NNCodec's files that reach the accuracy on the test set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

SECONDS = {"resnet32_jpegft": 60, "encoder": 600}
Row = dict[str, Any]
Curve = list[tuple[int, float]]
"""Bytes and accuracy, both rising."""


def before(network: dict[str, Any]) -> float:
    """Accuracy of the network itself."""
    rows = (row for row in network["rows"].values() if row["method"] == "original")
    return next((float(row["test"]) for row in rows), math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure that method obs shall not exceed.

    Attributes
    ----------
    kind : {"ratio", "bytes", "drop"}
        Bytes over NNCodec's, or bytes, where accuracy `at` is kept; or the drop of accuracy at `at` bytes.
    """

    network: str
    kind: str
    at: float
    bound: float
    text: str


def monotone(points: Curve) -> Curve:
    """Least-squares fit of an accuracy that rises with bytes (pool adjacent violators)."""
    blocks: list[tuple[float, list[int]]] = []
    for size, accuracy in sorted(points):
        blocks.append((accuracy, [size]))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, first), (b, second) = blocks[-2:]
            mean = (a * len(first) + b * len(second)) / (len(first) + len(second))
            blocks[-2:] = [(mean, [*first, *second])]
    return [(size, accuracy) for accuracy, sizes in blocks for size in sizes]


def bytes_at(curve: Curve, accuracy: float) -> float | None:
    """Bytes at which a curve reaches an accuracy; None outside of what was measured."""
    if not curve or not curve[0][1] <= accuracy <= curve[-1][1]:
        return None
    for (below, low), (above, high) in pairwise(curve):
        if accuracy <= high:
            share = (accuracy - low) / (high - low) if high > low else 0.0
            return math.exp(math.log(below) + max(0.0, share) * math.log(above / below))
    return float(curve[0][0])


def accuracy_at(curve: Curve, size: float) -> float | None:
    """Accuracy of a curve at so many bytes; None below its smallest file, its last beyond its largest."""
    if not curve or size < curve[0][0]:
        return None
    return float(np.interp(math.log(size), [math.log(s) for s, _ in curve], [a for _, a in curve]))


def curves(network: dict[str, Any], method: str, part: str) -> list[Curve]:
    """A curve for each value of `part`, mode or seed, that has three points or more."""
    points: dict[Any, Curve] = {}
    for row in network["rows"].values():
        if row["method"] == method:
            points.setdefault(row[part], []).append((row["file_bytes"], row["test"]))
    return [monotone(found) for _, found in sorted(points.items()) if len(found) > 2]


def nncodec_bytes(network: dict[str, Any], accuracy: float) -> float | None:
    """NNCodec's bytes in the best of its modes."""
    found = [bytes_at(curve, accuracy) for curve in curves(network, "nncodec", "mode")]
    return min((size for size in found if size is not None), default=None)


def luckiest_bytes(network: dict[str, Any], accuracy: float) -> int | None:
    """The smallest of NNCodec's files that reaches an accuracy."""
    rows = [r for r in network["rows"].values() if r["method"] == "nncodec" and r["test"] >= accuracy]
    return min((r["file_bytes"] for r in rows), default=None)


def measured(goal: Goal, network: dict[str, Any]) -> list[float]:
    """What a goal is about, for each curve of method obs; empty where it was not measured.

    Where even the smallest file keeps more than the accuracy that is asked for, that file counts.
    """
    peer = nncodec_bytes(network, goal.at)
    found: list[float | None] = []
    for curve in curves(network, "obs", "seed"):
        if goal.kind == "drop":
            reached = accuracy_at(curve, goal.at)
            found.append(None if reached is None else 100 * (before(network) - reached))
            continue
        ours = float(curve[0][0]) if goal.at < curve[0][1] else bytes_at(curve, goal.at)
        theirs = peer if goal.kind == "ratio" else 1.0
        found.append(None if ours is None or theirs is None else ours / theirs)
    return [value for value in found if value is not None]


def goals(networks: dict[str, Any]) -> list[Goal]:
    """The goals for the networks that were measured."""
    found = []
    if "resnet32_jpegft" in networks:
        row = networks["resnet32_jpegft"]
        for percent, bound in ((86, 0.5), (85, 0.5), (84, 0.5), (83, 0.4), (82, 0.4), (81, 0.4)):
            text = f"bytes / NNCodec's at {percent} %"
            found.append(
                Goal(network="resnet32_jpegft", kind="ratio", at=percent / 100, bound=bound, text=text)
            )
        size = row["fp32_bytes"] / 14
        found.append(
            Goal(
                network="resnet32_jpegft",
                kind="drop",
                at=size,
                bound=0.5,
                text=f"drop in points at {size:,.0f} bytes",
            )
        )
    for name in ("resnet20_jpegft", "dscnn", "resnet8", "characters"):
        if name in networks:
            at = before(networks[name]) - 0.01
            bound = 0.55 if name != "characters" else math.inf
            text = "bytes / NNCodec's at a drop of 1 point"
            found.append(Goal(network=name, kind="ratio", at=at, bound=bound, text=text))
    for name, bound in (("lenet300_p8", 9800), ("lenet5_p8", 12700)):
        if name in networks:
            at = before(networks[name]) - 0.001
            found.append(
                Goal(network=name, kind="bytes", at=at, bound=bound, text="bytes at a drop of 0.1 point")
            )
    return found


def goal_rows(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Network, goal, figure and verdict, as text."""
    networks = results.get("networks", {})
    rows = []
    for goal in goals(networks):
        values = measured(goal, networks[goal.network])
        form = "{:,.0f}" if goal.kind == "bytes" else "{:.2f}"
        bound = "" if math.isinf(goal.bound) else f", at most {form.format(goal.bound)}"
        if not values:
            rows.append((goal.network, goal.text + bound, "outside the curves", ""))
            continue
        mean = float(np.mean(values))
        spread = f" ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else ""
        obs_curves = curves(networks[goal.network], "obs", "seed")
        lucky = luckiest_bytes(networks[goal.network], goal.at) if goal.kind == "ratio" else None
        if lucky:
            peer = nncodec_bytes(networks[goal.network], goal.at) or math.nan
            spread += f"; {mean * peer / lucky:.2f} of the luckiest"
        verdict = "" if math.isinf(goal.bound) else _verdict(mean <= goal.bound)
        told = form.format(mean) + spread
        if goal.kind != "drop" and any(curve[0][1] > goal.at for curve in obs_curves):
            verdict = "open" if verdict == "missed" else verdict
            told = f"at most {told}, of the smallest file"
        rows.append((goal.network, goal.text + bound, told, verdict))
    for name, network in networks.items():
        rows += _seed_rows(name, network)
    for name, row in results.get("conversions", {}).items():
        rows += _cost_rows(name, row)
    return rows


def _seed_rows(name: str, network: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rates measured with all seeds where few are."""
    found: dict[float, list[Row]] = {}
    for row in network["rows"].values():
        if row["method"] == "obs":
            found.setdefault(row["rate_penalty"], []).append(row)
    several = {rate: rows for rate, rows in found.items() if len(rows) > 1}
    if len(several) != 1:
        return []
    ((rate, rows),) = several.items()
    told = [f"{r['file_bytes']:,} B {100 * r['test']:.2f} %" for r in sorted(rows, key=lambda r: r["seed"])]
    return [(name, f"rate {rate:g} with {len(rows)} calibration sets", ", ".join(told), "")]


def _cost_rows(name: str, row: Row) -> list[tuple[str, str, str, str]]:
    """Seconds and memory of a conversion."""
    text = f"conversion, {row['parameters']:,} parameters, {row['calibration']:,} inputs"
    limit = SECONDS.get(name)
    if limit is None:
        return [(name, text, f"{row['seconds']:.0f} s", "")]
    took = (name, f"{text}, at most {limit} s", f"{row['seconds']:.0f} s", _verdict(row["seconds"] <= limit))
    if not row["peak_bytes"]:
        return [took]
    bound = f"memory, at most model + 4 Hessians of the widest layer, {row['memory_bound'] / 1e6:,.0f} MB"
    kept = _verdict(row["peak_bytes"] <= row["memory_bound"])
    return [took, (name, bound, f"{row['peak_bytes'] / 1e6:,.0f} MB", kept)]


def _verdict(kept: bool) -> str:
    return "met" if kept else "missed"


def print_goals(results: dict[str, Any]) -> None:
    """Print the table of goals."""
    for row in goal_rows(results):
        print(" | ".join(row))
