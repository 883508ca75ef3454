"""Whole path on real networks: bytes, accuracy, exactness, beside NNCodec in the same run.

    NQZ_DATA=path/to/data [NQZ_PEERS=path/to/peers NQZ_PEERS_PYTHON=python-with-nncodec] make bench

Writes benchmarks/results/whole_path.json. Test accuracy is measured from the .nqz file by nqruntime.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import loaders, required_data_folder
from networks import LeNet5, LeNet300, mnist_images

import nqconvert
import nqformat
from nqformat.accounting import account
from nqruntime import InferenceSession

RESULTS = Path(__file__).parent / "results" / "whole_path.json"
SQUEEZENET_PUBLISHED = 675_763
SQUEEZENET_GOAL = 560_000
NNCODEC_MODES = "nncodec qp-32,nncodec qp-28,nncodec qp-24,nncodec qp-20"


NETWORKS = {"lenet300": (LeNet300, "lenet300_p8.pt"), "lenet5": (LeNet5, "lenet5_p8.pt")}


def accuracy(run: Any, images: np.ndarray, labels: np.ndarray) -> float:
    hits = 0
    for start in range(0, len(images), 500):
        hits += int((run(images[start : start + 500]).argmax(1) == labels[start : start + 500]).sum())
    return hits / len(images)


def convert_lenet(name: str, folder: Path, load: Any, target: Path, **settings: Any) -> dict[str, Any]:
    """Convert a pruned LeNet as it is: no labels, no retraining, 16-entry codebook a layer."""
    make, weights = NETWORKS[name]
    images, labels = load.mnist("test")
    x = mnist_images(images)
    module = make()
    module.load_state_dict(torch.load(folder / "pruned_lenets" / weights, weights_only=True))
    module.eval()
    with torch.inference_mode():
        before = accuracy(lambda batch: module(torch.from_numpy(batch)).numpy(), x, labels)
    train_x = mnist_images(load.mnist("train")[0][:256])
    started = time.perf_counter()
    report = nqconvert.convert(module, target, example_inputs=train_x, preset="deep-compression", **settings)
    seconds = time.perf_counter() - started
    with InferenceSession(target) as session:
        feed = session.get_inputs()[0].name
        after = accuracy(lambda batch: session.run(None, {feed: batch})[0], x, labels)
        engine = session.engine
    return {
        "network": name,
        "settings": settings,
        "file_bytes": report.file_bytes,
        "overhead_bytes": report.file.overhead,
        "ratio": report.ratio,
        "accuracy_before": before,
        "accuracy_after": after,
        "engine": engine,
        "seconds": seconds,
        "bits_over_entropy": _coded_over_entropy(report.file),
    }


def _coded_over_entropy(file: Any) -> float:
    weights = [
        t
        for t in file.tensors
        if t.layout in (nqformat.Layout.SPARSE, nqformat.Layout.DENSE, nqformat.Layout.MASK)
    ]
    return sum(t.coded_bits for t in weights) / sum(t.entropy_bits for t in weights)


def nncodec(name: str, folder: Path, work: Path) -> list[dict[str, Any]]:
    """NNCodec's bytes and accuracy on the same state dict; empty if it is not installed."""
    peers, python = os.environ.get("NQZ_PEERS"), os.environ.get("NQZ_PEERS_PYTHON")
    if not peers or not python:
        return []
    out = work / f"{name}.jsonl"
    command = [python, str(Path(peers) / "bench_peers.py"), str(folder / "pruned_lenets" / NETWORKS[name][1])]
    command += [str(work / "peers"), "--peers", NNCODEC_MODES, "--eval", name, "--json", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [{"mode": r["peer"], "file_bytes": r["bytes"], "accuracy": r["acc"]} for r in rows if "acc" in r]


def squeezenet(load: Any, work: Path) -> dict[str, Any]:
    """Han et al.'s decoded SqueezeNet weights, stored bit for bit."""
    layers, _ = load.squeezenet_deepcomp()
    tensors = {}
    for name, (weight, bias) in layers.items():
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, bias
    path = work / "squeezenet.nqz"
    report = nqconvert.convert(tensors, path, preset="lossless")
    decoded = nqformat.load_file(path)
    exact = all(decoded[n].tobytes() == np.ascontiguousarray(a).tobytes() for n, a in tensors.items())
    with nqformat.safe_open(path) as file:
        ratio = _coded_over_entropy(account(file))
    return {
        "file_bytes": report.file_bytes,
        "published_bytes": SQUEEZENET_PUBLISHED,
        "bit_exact": exact,
        "seconds": report.seconds,
        "bits_over_entropy": ratio,
    }


def _lenet_line(row: dict[str, Any]) -> str:
    before, after = 100 * row["accuracy_before"], 100 * row["accuracy_after"]
    return (
        f"{row['network']} {row['settings']}: {row['file_bytes']:,} bytes ({row['ratio']:.1f} x), overhead "
        f"{row['overhead_bytes']}, accuracy {before:.2f} -> {after:.2f} % (drop {before - after:.2f}), "
        f"{row['engine']} engine, coded bits {row['bits_over_entropy']:.4f} of order-0 entropy, "
        f"{row['seconds']:.1f} s"
    )


def main() -> None:
    torch.set_num_threads(1)
    folder = required_data_folder()
    load = loaders(folder)
    results: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "lenets": [],
    }
    with tempfile.TemporaryDirectory() as work_name:
        work = Path(work_name)
        for name in NETWORKS:
            ours = [
                convert_lenet(name, folder, load, work / f"{name}.nqz"),
                convert_lenet(name, folder, load, work / f"{name}.nqz", rest="bfloat16"),
            ]
            peers = nncodec(name, folder, work)
            results["lenets"].append({"ours": ours, "nncodec": peers})
            for row in ours:
                print(_lenet_line(row))
            for peer in peers:
                percent = 100 * peer["accuracy"]
                print(f"{name} {peer['mode']}: {peer['file_bytes']:,} bytes, accuracy {percent:.2f} %")
            if not peers:
                print(f"{name}: NNCodec not measured (set NQZ_PEERS and NQZ_PEERS_PYTHON)")
        results["squeezenet"] = found = squeezenet(load, work)
    print(
        f"SqueezeNet: {found['file_bytes']:,} bytes bit-exact={found['bit_exact']}, Han et al. "
        f"{SQUEEZENET_PUBLISHED:,} ({SQUEEZENET_PUBLISHED / found['file_bytes']:.3f} x), "
        f"goal {SQUEEZENET_GOAL:,}"
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
