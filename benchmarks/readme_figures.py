"""Write the figures of benchmarks/results/*.json into the README: ``python benchmarks/readme_figures.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, STOP = "<!-- figures: start -->", "<!-- figures: stop -->"


def whole_path(results: dict[str, Any]) -> list[str]:
    """Table of the pruned LeNets and SqueezeNet beside NNCodec."""
    lines = [
        "Networks as given, no labels, no retraining; bytes of the whole file, graph included "
        "(`benchmarks/whole_path.py`):",
        "",
        "| network | method | bytes | MNIST test accuracy |",
        "|---|---|---|---|",
    ]
    for group in results["lenets"]:
        for row in group["ours"]:
            rest = ", biases bfloat16" if row["settings"] else ""
            before, after = 100 * row["accuracy_before"], 100 * row["accuracy_after"]
            lines.append(
                f"| {row['network']}, 8 % dense | 16-entry k-means a layer{rest} | {row['file_bytes']:,} "
                f"({row['ratio']:.1f} x) | {before:.2f} -> {after:.2f} % |"
            )
        for peer in group["nncodec"]:
            name = group["ours"][0]["network"]
            lines.append(
                f"| {name}, 8 % dense | {peer['mode'].replace('nncodec', 'NNCodec')} | "
                f"{peer['file_bytes']:,} | {100 * peer['accuracy']:.2f} % |"
            )
    squeezenet = results["squeezenet"]
    lines.append(
        f"| SqueezeNet (Han et al.'s own weights) | lossless, bit-exact | {squeezenet['file_bytes']:,} "
        f"(their file: {squeezenet['published_bytes']:,}) | same weights |"
    )
    return lines


def main() -> None:
    """Replace the block between the markers."""
    results = json.loads((ROOT / "benchmarks" / "results" / "whole_path.json").read_text())
    readme = ROOT / "README.md"
    text = readme.read_text()
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(STOP)
    block = "\n".join(["", *whole_path(results), ""])
    readme.write_text(f"{head}{START}{block}{STOP}{tail}")


if __name__ == "__main__":
    main()
