"""Rows of retrained networks."""

from __future__ import annotations

import statistics
from typing import Any


def retraining(results: dict[str, Any]) -> list[str]:
    """Rows of the papers' networks, from their recipes."""
    lines = [
        "Whole files of retrained networks (`benchmarks/paper_rows.py`; details, intervals and goals in",
        "`benchmarks/papers/RESULTS.md`), means over seeds:",
        "",
        "| row | how | seeds | file bytes | ratio | test error, dense -> file |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results["rows"].items():
        rows = list(found["seeds"].values())
        size = statistics.mean(row["file_bytes"] for row in rows)
        before = statistics.mean(row["test_percent_before"] for row in rows)
        after = statistics.mean(row["test_percent"] for row in rows)
        ratio = rows[0]["fp32_bytes"] / size
        how = f"{found['method']} ({found['note']})"
        size_and_ratio = f"{size:,.0f} | {ratio:.0f} x"
        lines.append(f"| {name} | {how} | {len(rows)} | {size_and_ratio} | {before:.2f} -> {after:.2f} % |")
    return lines
