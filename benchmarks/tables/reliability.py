"""What fuzzing found and what verification costs."""

from __future__ import annotations

from typing import Any


def reliability(fuzz: dict[str, Any], reading: dict[str, Any]) -> list[str]:
    """Table of the fuzzing run that fuzz.json records, and of what verification costs."""
    lines = ["| input | tried | crashes, hangs, foreign errors, memory above the limit |", "|---|---|---|"]
    names = {"structured": "mutants with repaired checksums", "random": "mutants of 1 to 8 random bytes"}
    for campaign in fuzz.get("campaigns", []):
        kind = names[campaign["kind"]]
        lines.append(
            f"| {kind} of {fuzz['golden_files']} files | {campaign['n_done']:,} | "
            f"{len(campaign['failures'])} |"
        )
    if reading:
        shares = [
            f"{100 * row['verification_share']:.0f} % ({name})"
            for name, row in reading["verification"].items()
        ]
        slowest = 1000 * max(reading["refusal_seconds"].values())
        lines += [
            "",
            f"Verification takes {' and '.join(shares)} of `load_file`; "
            f"{len(reading['refusal_seconds'])} small files that declare huge sizes "
            f"are refused in at most {slowest:.1f} ms.",
        ]
    return lines
