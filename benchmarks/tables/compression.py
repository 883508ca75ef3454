"""Networks as they are: whole files, coders of indices, a huge tensor."""

from __future__ import annotations

from typing import Any


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


def codec(results: dict[str, Any]) -> list[str]:
    """Table of real networks: whole files beside the coded indices alone of other coders."""
    lines = [
        "Weight matrices as k-means makes them (16 or 32 clusters a layer; SqueezeNet as published), bytes",
        "over the order-0 entropy of the indices: `nqz` counts the whole file with codebooks and checksums,",
        "the others their coded indices alone. Speed is of decoding on one core, `nqz` from an open file to",
        "float32, the others to indices (`benchmarks/codec.py`, picture in `benchmarks/results/codec.png`):",
        "",
        "| network | entropy, bytes | nqz (size) | nqz (speed) | NNCodec | constriction | zstd -19 | "
        "Msymbols/s: nqz (speed) | NNCodec | zstd -19 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in results.get("networks", {}).items():
        sizes = [
            f"{row['coders'][coder]['over_entropy']:.3f}" if coder in row["coders"] else ""
            for coder in ("nqz size", "nqz speed", "NNCodec", "constriction", "zstd -19")
        ]
        speeds = [
            f"{row['coders'][coder]['decode_msymbols_per_second']:,.0f}" if coder in row["coders"] else ""
            for coder in ("nqz speed, open", "NNCodec", "zstd -19")
        ]
        lines.append(f"| {name} | {row['entropy_bytes']:,.0f} | {' | '.join([*sizes, *speeds])} |")
    return lines


def huge(results: dict[str, Any]) -> str:
    """One line on the huge tensor."""
    written, read = results["write"], results["read"]
    return (
        f"One tensor of {results['elements']:,} weights, 16 values: written in {written['seconds']:.0f} s "
        f"({written['peak_bytes'] / 1e9:.1f} GB of memory at most), read in {read['seconds']:.1f} s "
        f"({read['peak_bytes'] / 1e9:.1f} GB, {read['array_bytes'] / 1e9:.1f} of them the float32 tensor), "
        "equal (`benchmarks/huge.py`)."
    )
