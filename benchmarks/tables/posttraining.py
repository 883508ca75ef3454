"""Post-training files beside NNCodec at equal accuracy, and the goals."""

from __future__ import annotations

from typing import Any

from posttraining_goals import before, bytes_at, curves, goal_rows, nncodec_bytes

POSTTRAINING_DROPS = {
    "lenet300_p8": (0.1, 0.3),
    "lenet5_p8": (0.1, 0.3),
    "resnet32_jpegft": (0.5, 1, 3),
    "resnet20_jpegft": (0.5, 1, 3),
    "dscnn": (1, 3),
    "resnet8": (0.5, 1, 3),
    "characters": (0.5, 1, 3),
}


def posttraining(results: dict[str, Any]) -> list[str]:
    """Tables of files from calibration inputs alone beside NNCodec at equal accuracy, and of the goals."""
    lines = [
        "Preset `post-training`: unlabelled training data as calibration inputs, no retraining; whole files",
        "at equal test accuracy, from curves through several rates (means of three calibration seeds where",
        "there are as many, see `benchmarks/posttraining_goals.py`; picture in",
        "`benchmarks/results/posttraining.png`). NNCodec's bytes, in the better of its modes, are of tensors",
        "alone; rounding is to a uniform grid in a `.nqz` file. CIFAR-10 is JPEG-recompressed.",
        "",
        "| network, fp32 bytes | accuracy | drop, points | obs | NNCodec | rounding | int8 + zstd (drop) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, network in results.get("networks", {}).items():
        original = before(network)
        head = f"| {name}, {network['fp32_bytes']:,} | {100 * original:.2f} % of {network['n_test']:,} "
        integers = [row for row in network["rows"].values() if row["method"] == "int8+zstd"]
        told = [f"{r['file_bytes']:,} ({100 * (original - r['test']):.2f})" for r in integers]
        for drop in POSTTRAINING_DROPS[name]:
            at = original - drop / 100
            ours = [size for curve in curves(network, "obs", "seed") if (size := bytes_at(curve, at))]
            sizes = [sum(ours) / len(ours) if ours else None, nncodec_bytes(network, at)]
            sizes += [bytes_at(curve, at) for curve in curves(network, "round", "method")][:1] or [None]
            if sizes[0] is None:
                continue
            cells = " | ".join("not measured" if size is None else f"{size:,.0f}" for size in sizes)
            lines.append(f"{head}| {drop:g} | {cells} | {''.join(told) or 'not measured'} |")
    lines += ["", "| network | goal | measured | |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in goal_rows(results)]
    return lines
