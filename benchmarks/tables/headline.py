"""The few figures that stand at the top of the README."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttraining_goals import before, bytes_at, curves, nncodec_bytes

Read = Callable[[str], dict[str, Any]]


def headline(read: Read) -> list[str]:
    """One row for each capability that was measured, beside the best other way."""
    rows = [
        *_posttraining(read("posttraining").get("networks", {})),
        *_retraining(read("papers").get("rows", {})),
        *_speed(read("inference").get("rows", {})),
        *_lossless(read("whole_path")),
    ]
    return ["| what | here | beside it |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def _posttraining(networks: dict[str, Any]) -> list[tuple[str, str, str]]:
    labels = {"resnet32_jpegft": "ResNet-32, JPEG-recompressed CIFAR-10", "dscnn": "DS-CNN, keywords"}
    found = []
    for name, label in labels.items():
        if name not in networks:
            continue
        network = networks[name]
        at = before(network) - 0.01
        ours = [size for curve in curves(network, "obs", "seed") if (size := bytes_at(curve, at))]
        theirs = nncodec_bytes(network, at)
        if ours and theirs:
            size = sum(ours) / len(ours)
            found.append(
                (
                    f"{label}: a few hundred unlabelled inputs, no retraining, 1 point of accuracy",
                    f"{size:,.0f} bytes, {network['fp32_bytes'] / size:.0f} x",
                    f"NNCodec (ISO/IEC 15938-17) {theirs:,.0f}",
                )
            )
    return found


def _retraining(rows: dict[str, Any]) -> list[tuple[str, str, str]]:
    published = {
        "lenet5-small": (
            "LeNet-5, MNIST",
            "soft weight-sharing (Ullrich et al. 2017), by formula: 162 x at 0.97 %",
        ),
        "lenet300-augmented": (
            "LeNet-300-100, MNIST",
            "soft weight-sharing (Ullrich et al. 2017), by formula: 64 x at 1.94 %",
        ),
        "resnet32-both": (
            "ResNet-32, JPEG-recompressed CIFAR-10",
            "Choi et al. 2017, by formula: 22 x, 7.42 -> 7.32 % on CIFAR-10 itself",
        ),
    }
    found = []
    for name, (network, other) in published.items():
        if name in rows:
            seeds = list(rows[name]["seeds"].values())
            size = sum(row["file_bytes"] for row in seeds) / len(seeds)
            error = sum(row["test_percent"] for row in seeds) / len(seeds)
            dense = sum(row["test_percent_before"] for row in seeds) / len(seeds)
            ratio = (
                f"{size:,.0f} bytes, {seeds[0]['fp32_bytes'] / size:.0f} x at {error:.2f} % error "
                f"(dense {dense:.2f})"
            )
            label = f"{network}, retrained ({rows[name]['note']})"
            found.append((label, ratio, other))
    return found


def _speed(rows: dict[str, Any]) -> list[tuple[str, str, str]]:
    labels = {
        "FC 4096 x 4096, 9 %, batch 1": "fully connected 4096 x 4096, 9 % of the weights left",
        "FC 4096 x 4096, 16 clusters, batch 1": "fully connected 4096 x 4096, 16 clusters",
        "ResNet-32, 10 %, batch 1": "ResNet-32, 10 % of the weights left",
    }
    found = []
    for label, text in labels.items():
        times = rows.get(label, {}).get("1", {}).get("milliseconds", {})
        if {"native", "ort"} <= times.keys():
            ours, theirs = times["native"]["best"], times["ort"]["best"]
            figure = f"{ours:.2g} ms, {theirs / ours:.1f} x as fast"
            found.append((f"{text}: one input, one thread", figure, f"ONNX Runtime, floats, {theirs:.2g} ms"))
    return found


def _lossless(results: dict[str, Any]) -> list[tuple[str, str, str]]:
    network = results.get("squeezenet")
    if not network:
        return []
    label = "SqueezeNet as Han et al. published it, every bit kept"
    return [(label, f"{network['file_bytes']:,} bytes", f"their own file {network['published_bytes']:,}")]
