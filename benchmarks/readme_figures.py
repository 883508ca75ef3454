"""Write the figures of benchmarks/results/*.json into the README: ``python benchmarks/readme_figures.py``."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from harness import read
from inference_tables import inference
from posttraining_goals import before, bytes_at, curves, goal_rows, nncodec_bytes

_SHOWN_FORMS = ("dense", "codebook", "sparse", "auto", "qdq", "ort-nbits")
ROOT = Path(__file__).parents[1]
START, STOP = "<!-- figures: start -->", "<!-- figures: stop -->"
POSTTRAINING_MARKS = "<!-- posttraining: start -->", "<!-- posttraining: stop -->"
RETRAINING_MARKS = "<!-- retraining: start -->", "<!-- retraining: stop -->"
RELIABILITY_MARKS = "<!-- reliability: start -->", "<!-- reliability: stop -->"
INFERENCE_MARKS = "<!-- inference: start -->", "<!-- inference: stop -->"
ONNX_MARKS = "<!-- onnx: start -->", "<!-- onnx: stop -->"
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
    tables = [
        ordering(_part(results, "ordering ")),
        scopes(_part(results, "ordering ")),
        reasons(_part(results, "why ")),
        *(trials(name, row) for name, row in _part(results, "trials ").items()),
        *(unfolded(name, row) for name, row in _part(results, "unfolded ").items()),
        small_networks(_part(results, "rows ")),
        goals(_part(results, "goals ")),
        costs(results, _part(results, "memory ")),
    ]
    lines: list[str] = []
    for table in tables:
        lines += [*table, ""] if table else []
    return lines[:-1]


def _part(results: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in results.items() if k.startswith(prefix)}


def ordering(rows: dict[str, Any]) -> list[str]:
    """Bytes of methods at equal loss and at equal divergence, k-means = 1."""
    if not rows:
        return []
    names = list(next(iter(rows.values()))["huffman"]["loss"])
    lines = [
        "One codebook for all layers, bytes of whole files on test images, k-means = 1; a curve through",
        "several rates decides each figure (`benchmarks/quantizers.py`). At equal loss, and at equal",
        "Kullback-Leibler divergence from the network's own answers, which luck does not make smaller:",
        "",
        f"| network, test images | at equal | {' | '.join(names)} | hessian-kmeans, fixed-length codes |",
        f"|---|---|{'---|' * (len(names) + 1)}",
    ]
    for network, row in rows.items():
        for measure, ratios in row["huffman"].items():
            cells = " | ".join(map(_ratio, [*ratios.values(), row["fixed_length"][measure]]))
            lines.append(f"| {network}, {row['n_test']:,} | {measure} | {cells} |")
    return lines


def _ratio(ratio: float | None) -> str:
    return "nothing in common" if ratio is None else f"{ratio:.3f}"


def scopes(rows: dict[str, Any]) -> list[str]:
    """One codebook for all layers against one for each."""
    if not rows:
        return []
    lines = [
        "One codebook for each layer against one for all; accuracy at the best and the worst of the rates,",
        "and mean seconds to make a file on a busy machine, jointly and layer by layer:",
        "",
        "| network | method | bytes, per layer over joint, at equal loss | at equal divergence "
        "| accuracy, joint | per layer | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for network, row in rows.items():
        for method, pair in row["scope"].items():
            spans = [
                f"{100 * max(pair['accuracy'][s]):.2f} to {100 * min(pair['accuracy'][s]):.2f} %"
                for s in ("joint", "per layer")
            ]
            seconds = f"{pair['seconds']['joint']:.1f} and {pair['seconds']['per layer']:.1f}"
            ratios = f"{_ratio(pair['ratio'])} | {_ratio(pair['ratio_at_divergence'])}"
            lines.append(f"| {network} | {method} | {ratios} | {spans[0]} | {spans[1]} | {seconds} |")
    return lines


def reasons(rows: dict[str, Any]) -> list[str]:
    """Why Hessian-weighted k-means wins or not: entropy at equal weighted error."""
    if not rows:
        return []
    apart = "entropy, batch norms apart"
    shown = {name: row["entropy"] for name, row in rows.items()}
    shown |= {f"{name}, batch norms apart": row[apart] for name, row in rows.items() if apart in row}
    variants = list(next(iter(shown.values())))
    lines = [
        "Why `hessian-kmeans` saves bytes on one network and not on another: entropy of the indices of",
        "`hessian-kmeans` and of `uniform` at equal sensitivity-weighted error, k-means = 1, with the",
        "sensitivities changed on purpose. Batch norms are folded into stored weights; apart, as Choi et al.",
        "quantize, means the weights as they were trained:",
        "",
        f"| sensitivities | {' | '.join(shown)} |",
        f"|---|{'---|' * len(shown)}",
    ]
    for variant in variants:
        cells = [f"{r[variant]['hessian-kmeans']:.3f}, {r[variant]['uniform']:.3f}" for r in shown.values()]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def trials(network: str, row: dict[str, Any]) -> list[str]:
    """Files of one network with one thing changed."""
    tuned, checks = row["fine_tuned"], row["prediction"]
    halves = ", ".join(f"{agreement:.2f} ({pair})" for pair, agreement in row["halves"].items())
    lines = [
        f"{network}, files with one thing changed, bytes at equal divergence on {row['n_test']:,} test",
        "images, k-means of the same scope = 1:",
        "",
        "| hessian-kmeans weighted with | prefix codes | codes of a fixed length |",
        "|---|---|---|",
    ]
    for label, ratios in row["ratios"].items():
        lines.append(f"| {label} | {_ratio(ratios['huffman'])} | {_ratio(ratios['fixed_length'])} |")
    lines += [
        "",
        f"Sensitivities of a layer correlate (logarithms, by number of images): {halves}.",
        f"An epoch that trains entries: {_ratio(tuned['before'])} before, {_ratio(tuned['after'])} after, at",
        "three of the rates: which rates are taken moves a ratio by as much as most rows differ.",
        "Divergence predicted, that of single tensors added up, and that of all tensors together: "
        + "; ".join(
            f"{name} {c['predicted']:.3f}, {c['sum of single tensors']:.3f}, {c['measured']:.3f}"
            for name, c in checks.items()
        )
        + ".",
    ]
    return lines


def unfolded(network: str, row: dict[str, Any]) -> list[str]:
    """Files of weights that no batch norm is folded into."""
    return [
        f"{network} with batch norms apart, bytes of `hessian-kmeans` at equal divergence, `kmeans` = 1:",
        f"{_ratio(row['huffman'])}, with codes of a fixed length {_ratio(row['fixed_length'])}.",
    ]


def small_networks(rows: dict[str, Any]) -> list[str]:
    """Small dense networks: sensitivities, scopes and vectors."""
    if not rows:
        return []
    names = list(dict.fromkeys(name for row in rows.values() for name in row["ratio"]))
    labels = {
        "dscnn": "DS-CNN, keywords",
        "lstm": "LSTM, spoken digits",
        "resnet8": "ResNet-8, JPEG-recompressed CIFAR-10",
    }
    heads = [f"{labels[name]}, {100 * row['original']['accuracy']:.1f} %" for name, row in rows.items()]
    lines = [
        "Small dense networks with the Adam moments of their training, bytes of whole files at equal",
        "divergence, k-means layer by layer = 1; three rates each, so that a few percent mean little:",
        "",
        f"| method | {' | '.join(heads)} |",
        f"|---|{'---|' * len(rows)}",
    ]
    for name in names:
        cells = [_ratio(row["ratio_at_divergence"].get(name)) for row in rows.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def goals(rows: dict[str, Any]) -> list[str]:
    """Smallest files that keep the accuracy, beside NNCodec."""
    if not rows:
        return []
    lines = [
        "No retraining, the smallest files that lose at most 0.1 point on training images; NNCodec, where it",
        "was run, chosen by the same rule in the same run, with the bytes of tensors alone:",
        "",
        "| network | method | file | tensors alone | test accuracy | NNCodec | test accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, row in rows.items():
        before, after = 100 * row["original"]["test"], 100 * row["test"]
        method = f"{row['settings']['method']}, {row['settings']['sensitivity']}"
        peer = row.get("nncodec")
        cells = f"{peer['bytes']:,} (qp {peer['qp']}) | {100 * peer['test']:.2f} %" if peer else " | "
        lines.append(
            f"| {label} | {method} | {row['file_bytes']:,} | {row['bytes_without_graph']:,} | "
            f"{before:.2f} -> {after:.2f} % | {cells} |"
        )
    return lines


def costs(results: dict[str, Any], rows: dict[str, Any]) -> list[str]:
    """Seconds and memory of large models."""
    lines = []
    if rows:
        first = next(iter(rows.values()))
        lines = [
            f"A state dict of 25 million parameters ({first['model_bytes'] / 1e6:.0f} MB), converted and",
            "checked on one core; memory is the peak above the process before the model, which is counted",
            f"once (model + 4 x the largest tensor would be {first['bound_bytes'] / 1e6:.0f} MB):",
            "",
            "| method | CPU seconds | peak memory | file |",
            "|---|---|---|---|",
        ]
        for method, row in rows.items():
            peak = f"{row['peak_bytes'] / 1e6:.0f} MB"
            lines.append(f"| {method} | {row['cpu_seconds']:.0f} | {peak} | {row['file_bytes']:,} |")
    if "speed" in results:
        speed, flash = results["speed"], results["speed"]["flash1dkmeans"]
        beside = "" if isinstance(flash, str) else f" (flash1dkmeans: {flash['cpu']:.1f} s)"
        lines += ["" for _ in lines[:1]]
        lines.append(
            f"Weighted k-means of {speed['n_weights'] / 1e6:.0f} million numbers into {speed['k']}: "
            f"{speed['kmeans']['cpu']:.1f} s of CPU{beside}; ecsq: {speed['ecsq']['cpu']:.1f} s."
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


def onnx_forms(results: dict[str, Any]) -> list[str]:
    """Tables of export forms, their cost in ONNX Runtime, and round trips."""
    lines: list[str] = []
    forms = results.get("forms", {})
    if forms:
        names = [name for name in next(iter(forms.values()))["8 %"] if name in _SHOWN_FORMS]
        lines += [
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
        lines.append("")
    if costs := results.get("costs", {}):
        lines += ["Forms over `dense` in ONNX Runtime, one thread, and the difference of outputs:", ""]
        lines += [
            "| network | `codebook` run time | memory to load | difference | `sparse` run time | memory |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for network, row in costs.items():
            runs, memory = row["run_ratio"], row["resident_ratio"]
            lines.append(
                f"| {network} | {runs['codebook']:.2f} | {memory['codebook']:.2f} | {row['difference']:.1g} "
                f"| {runs['sparse']:.2f} | {memory['sparse']:.2f} |"
            )
        lines.append("")
    if trips := results.get("round_trips", {}):
        exact = [name for name, row in trips.items() if row["same_graph"] and not row["differing_tensors"]]
        rest = [name for name in trips if name not in exact]
        said = f" Not: {', '.join(rest)}." if rest else ""
        lines += [
            f".onnx -> .nqz (lossless) -> .onnx: {len(exact)} of {len(trips)} models come back with every "
            f"tensor bit-identical and the same graph.{said}",
            f"They are {', '.join(exact)}.",
            "",
        ]
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
    if (measured := read("papers")).get("rows"):
        text = replaced(text, *RETRAINING_MARKS, retraining(measured))
    if (measured := read("inference")).get("rows"):
        text = replaced(text, *INFERENCE_MARKS, inference(measured))
    if measured := read("fuzz"):
        text = replaced(text, *RELIABILITY_MARKS, reliability(measured, read("reading")))
    if lines := [*onnx_forms(read("onnx_models")), *onnx_consumers(read("onnx_consumers"))]:
        text = replaced(text, *ONNX_MARKS, lines)
    readme.write_text(text)


if __name__ == "__main__":
    main()
