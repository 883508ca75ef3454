"""Write the figures of benchmarks/results/*.json into the README: ``python benchmarks/readme_figures.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import read
from posttraining_goals import before, bytes_at, curves, goal_rows, nncodec_bytes

ROOT = Path(__file__).parents[1]
START, STOP = "<!-- figures: start -->", "<!-- figures: stop -->"
POSTTRAINING_MARKS = "<!-- posttraining: start -->", "<!-- posttraining: stop -->"
RELIABILITY_MARKS = "<!-- reliability: start -->", "<!-- reliability: stop -->"
POSTTRAINING_DROPS = {
    "lenet300_p8": (0.1, 0.3),
    "lenet5_p8": (0.1, 0.3),
    "resnet32_jpegft": (0.5, 1, 3),
    "resnet20_jpegft": (0.5, 1, 3),
    "dscnn": (1, 3),
    "resnet8": (0.5, 1, 3),
    "characters": (0.5, 1, 3),
}
QUANTIZER_MARKS = "<!-- quantizers: start -->", "<!-- quantizers: stop -->"


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


def quantizers(results: dict[str, Any]) -> list[str]:
    """Tables of the quantizers: the parts that were measured."""
    lines = []
    orders = {k.partition(" ")[2]: v for k, v in results.items() if k.startswith("ordering ")}
    if orders:
        names = list(next(iter(orders.values()))["huffman"]["ratio"])
        lines += [
            "One codebook for all layers, whole files at equal loss on test images, k-means = 1; a curve",
            "through several rates decides each figure (`benchmarks/quantizers.py`):",
            "",
            f"| network | {' | '.join(names)} | hessian-kmeans, fixed-length codes | one codebook a layer |",
            f"|---|{'---|' * (len(names) + 2)}",
        ]
        for network, row in orders.items():
            cells = [f"{ratio:.3f}" for ratio in row["huffman"]["ratio"].values()]
            fixed = f"{row['fixed_length']['ratio']['hessian-kmeans']:.3f}"
            scopes = ", ".join(
                f"{n}: {v['ratio']['per layer']:.3f} of joint" for n, v in row["scope"].items()
            )
            lines.append(f"| {network} | {' | '.join(cells)} | {fixed} | {scopes} |")
        lines.append("")
    chosen = {k.partition(" ")[2]: v for k, v in results.items() if k.startswith("goals ")}
    if chosen:
        lines += [
            "No retraining, rate chosen so that at most 0.1 point is lost on training images; NNCodec's",
            "bytes are of tensors alone:",
            "",
            "| network | method | file | tensors alone | NNCodec | test accuracy |",
            "|---|---|---|---|---|---|",
        ]
        for label, row in chosen.items():
            before, after = 100 * row["original"]["test"], 100 * row["test"]
            method = f"{row['settings']['method']}, {row['settings']['sensitivity']}"
            lines.append(
                f"| {label} | {method} | {row['file_bytes']:,} | {row['bytes_without_graph']:,} | "
                f"{row['nncodec_bytes']:,} | {before:.2f} -> {after:.2f} % |"
            )
    return lines


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


def replaced(text: str, start: str, stop: str, lines: list[str]) -> str:
    """Put lines between two markers."""
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(stop)
    return "\n".join([f"{head}{start}", *lines, f"{stop}{tail}"])


def main() -> None:
    """Replace the blocks between the markers."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    lines = [*whole_path(read("whole_path")), ""]
    if (measured := read("codec")).get("networks"):
        lines += [*codec(measured), ""]
    if measured := read("huge"):
        lines += [huge(measured), ""]
    text = replaced(text, START, STOP, lines[:-1])
    if (measured := read("posttraining")).get("networks"):
        text = replaced(text, *POSTTRAINING_MARKS, posttraining(measured))
    if measured := quantizers(read("quantizers")):
        text = replaced(text, *QUANTIZER_MARKS, measured)
    if measured := read("fuzz"):
        text = replaced(text, *RELIABILITY_MARKS, reliability(measured, read("reading")))
    readme.write_text(text)


if __name__ == "__main__":
    main()
