"""Quantizers beside one another: order, scopes, reasons, small networks, goals and costs."""

from __future__ import annotations

from typing import Any


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
