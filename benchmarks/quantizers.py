"""Quantizers side by side on trained networks: bytes, loss, accuracy, seconds, memory.

    NQZ_DATA=path/to/data [NQZ_PEERS=path NQZ_PEERS_PYTHON=python] python benchmarks/quantizers.py [part ...]

Parts: ordering, goals, rows, why, trials, unfolded, speed, optimum, memory; all without an argument. Each
writes its key of benchmarks/results/quantizers.json; with --fresh no point of an earlier run is taken from
there. Bytes are of whole files, graph included; losses and accuracies are of the files, read back. Rates are
chosen on training images, never on test images.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from harness import RESULTS, loaders, machine, required_data_folder, write
from networks import NETWORKS
from quantizer_costs import METHODS, memory, optimum, speed
from quantizer_curves import Measure, Point, Workbench, base_settings, ratios_to_first
from quantizer_peers import nncodec_files, smallest_within
from quantizer_reasons import layer_scales, reasons
from quantizer_trials import Budget, trials
from quantizer_unfolded import unfolded, unfolded_ratios
from small_networks import SMALL_NETWORKS

CURVES: dict[str, dict[str, Any]] = {
    "kmeans": {"method": "kmeans", "sensitivity": "none"},
    "hessian-kmeans": {"method": "hessian-kmeans", "sensitivity": "fisher"},
    "uniform + fisher": {"method": "uniform", "sensitivity": "fisher"},
    "ecsq + fisher": {"method": "ecsq", "sensitivity": "fisher", "clusters": 64},
    "ecsq + root of fisher": {"method": "ecsq", "sensitivity": "root-fisher", "clusters": 64},
}
KNOBS = {"ecsq": "rate_penalty", "uniform": "step"}
PER_LAYER = {
    "lenet300_p8": ("hessian-kmeans", "ecsq + fisher"),
    "lenet5_p8": ("hessian-kmeans", "ecsq + fisher"),
    "resnet32_jpegft": ("hessian-kmeans", "ecsq + fisher"),
}
NNCODEC_QPS = {"lenet300_p8": (-20, -18, -17, -16, -15, -14), "lenet5_p8": (-20, -18, -17, -16, -15, -14)}
MAX_DROP = 0.001
TRIALS = {"resnet32_jpegft": Budget()}


ROWS: dict[str, dict[str, Any]] = {
    "kmeans": {"method": "kmeans", "sensitivity": "none"},
    "hessian-kmeans, fisher": {"method": "hessian-kmeans", "sensitivity": "fisher"},
    "hessian-kmeans, adam sqrt(v)": {"method": "hessian-kmeans", "sensitivity": "adam"},
    "hessian-kmeans, adam v": {"method": "hessian-kmeans", "sensitivity": "adam v"},
    "kmeans by layer": {"method": "kmeans", "sensitivity": "none", "scope": "layer"},
    "kmeans by channel": {"method": "kmeans", "sensitivity": "none", "scope": "channel"},
    "uniform by channel": {"method": "uniform", "sensitivity": "none", "scope": "channel"},
    "vq of pairs": {"method": "vq", "sensitivity": "none", "scope": "layer", "width": 2},
    "ecsq, root of fisher": {"method": "ecsq", "sensitivity": "root-fisher", "clusters": 64},
}
ROW_RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "lstm": {
        "clusters": (6, 12, 24),
        "kmeans by channel": (3, 5, 9),
        "vq of pairs": (32, 96, 256),
        "step": (0.25, 0.5, 0.9),
        "rate_penalty": (1e-3, 6e-3, 3e-2),
    },
    "dscnn": {
        "clusters": (16, 32, 64),
        "kmeans by channel": (4, 7, 12),
        "vq of pairs": (64, 128, 256),
        "step": (0.12, 0.25, 0.5),
        "rate_penalty": (3e-4, 2e-3, 1e-2),
    },
    "resnet8": {
        "clusters": (48, 100, 200),
        "kmeans by channel": (6, 10, 16),
        "vq of pairs": (128, 256, 1024),
        "step": (0.08, 0.15, 0.3),
        "rate_penalty": (1e-5, 1e-4, 1e-3),
    },
}
N_FISHER = 2000
GOALS: dict[str, list[dict[str, Any]]] = {
    "with fisher": [
        {"method": "ecsq", "sensitivity": "root-fisher", "clusters": k, "rate_penalty": p}
        for k in (32, 64)
        for p in (0.03, 0.045, 0.06, 0.09, 0.12)
    ],
    "without data": [
        {"method": "uniform", "sensitivity": "none", "step": 1.0},
        *(
            {"method": "ecsq", "sensitivity": "root-noise", "clusters": k, "rate_penalty": p}
            for k in (24, 32, 48)
            for p in (0.02, 0.04, 0.06, 0.065, 0.07, 0.08)
        ),
    ],
}
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "lenet300_p8": {
        "clusters": (6, 8, 10, 13, 18),
        "step": (0.7, 0.9, 1.1, 1.4, 1.7),
        "ecsq + fisher": (5e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "ecsq + root of fisher": (1e-2, 3e-2, 6e-2, 1.2e-1, 2.2e-1),
    },
    "lenet5_p8": {
        "clusters": (6, 8, 10, 13, 18),
        "step": (0.7, 0.9, 1.1, 1.4, 1.7),
        "ecsq + fisher": (3e-3, 1e-2, 2e-2, 4e-2, 7e-2),
        "ecsq + root of fisher": (3e-2, 6e-2, 1e-1, 1.6e-1, 2.5e-1),
    },
    "resnet32_jpegft": {
        "clusters": (12, 14, 18, 22, 27, 34, 42, 52),
        "step": (0.2, 0.35, 0.6, 0.9),
        "ecsq + fisher": (3e-4, 1e-3, 3e-3, 6e-3),
        "ecsq + root of fisher": (3e-4, 1.5e-3, 6e-3, 2e-2),
    },
}


def curve(bench: Workbench, name: str, *, scope: str) -> list[Point]:
    """One method at several rates."""
    rates = RATES[bench.network.name]
    knob = next((k for word, k in KNOBS.items() if name.startswith(word)), "clusters")
    values = rates[name] if knob == "rate_penalty" else rates[knob]
    return measured_points(bench, name, {**CURVES[name], "scope": scope}, knob, values)


def measured_points(
    bench: Workbench, name: str, settings: dict[str, Any], knob: str, values: Iterable[float]
) -> list[Point]:
    """Points at several rates; those that an interrupted run measured are taken from the results."""
    points = []
    for value in values:
        key = f"{bench.network.name}, {name}, {settings['scope']}, {knob} {value:g}"
        known = read_results().get("points", {}).get(key)
        if known is None or "divergence" not in known:
            value = int(value) if knob == "clusters" else value
            p = bench.point(base_settings(**{**settings, knob: value}), knob)
            save_results({"points": {key: asdict(p)}})
        else:
            p = Point(**known)
        points.append(p)
        print(
            f"{key}: {p.file_bytes:,} bytes, loss {p.loss:.4f}, accuracy {100 * p.accuracy:.2f} %, "
            f"{p.seconds:.1f} s",
            flush=True,
        )
    return points


def ordering(network: str) -> dict[str, Any]:
    """Choi et al.'s order of methods, and one codebook for all layers against one for each."""
    folder = required_data_folder()
    bench = Workbench.of(NETWORKS[network](folder, loaders(folder)))
    seconds = bench.measure("fisher", bench.network.calibration[:N_FISHER])
    bench.add_root("fisher")
    original = bench.original(bench.network.test)
    curves = {name: curve(bench, name, scope="global") for name in CURVES}
    scopes = {}
    for name in PER_LAYER[network]:
        pair = {"joint": curves[name], "per layer": curve(bench, name, scope="layer")}
        scopes[name] = {
            "ratio": ratios_to_first(pair, original[0])["per layer"],
            "ratio_at_divergence": ratios_to_first(pair, original[0], measure="divergence")["per layer"],
            "seconds": {
                scope: sum(p.seconds for p in points) / len(points) for scope, points in pair.items()
            },
            "accuracy": {scope: [p.accuracy for p in points] for scope, points in pair.items()},
        }
    kmeans = {name: curves[name] for name in ("kmeans", "hessian-kmeans")}
    measures: tuple[Measure, ...] = ("loss", "divergence")
    return {
        "original": {"loss": original[0], "accuracy": original[1]},
        "n_test": len(bench.network.test[1]),
        "n_fisher": min(N_FISHER, len(bench.network.calibration)),
        "fisher_seconds": seconds,
        "huffman": {m: ratios_to_first(curves, original[0], measure=m) for m in measures},
        "fixed_length": {
            m: ratios_to_first(kmeans, original[0], measure=m, fixed=True)["hessian-kmeans"] for m in measures
        },
        "scope": scopes,
    }


def rows(network: str) -> dict[str, Any]:
    """A small dense network: what weights the errors, scope ``channel`` and ``vq``, each against k-means."""
    folder = required_data_folder()
    small = SMALL_NETWORKS[network](folder, loaders(folder))
    bench = Workbench.of(small.network)
    seconds = bench.measure("fisher")
    bench.add_root("fisher")
    if small.moments is not None:
        bench.take_moments(small.moments)
    original = bench.original(bench.network.test)
    points = {}
    for name, settings in ROWS.items():
        if settings["sensitivity"] in bench.sensitivities:
            knob = KNOBS.get(settings["method"], "clusters")
            values = ROW_RATES[network].get(name, ROW_RATES[network][knob])
            points[name] = measured_points(bench, name, {"scope": "global", **settings}, knob, values)
    base = {"kmeans by layer": points["kmeans by layer"], **points}
    return {
        "original": {"loss": original[0], "accuracy": original[1]},
        "n_test": len(bench.network.test[1]),
        "fisher_seconds": seconds,
        "ratio": ratios_to_first(base, original[0]),
        "ratio_at_divergence": ratios_to_first(base, original[0], measure="divergence"),
        "accuracy": {name: [p.accuracy for p in found] for name, found in points.items()},
        "bytes": {name: [p.file_bytes for p in found] for name, found in points.items()},
    }


def goals(network: str, label: str) -> dict[str, Any]:
    """The smallest file whose accuracy on training images drops by at most 0.1 point; test images once."""
    folder = required_data_folder()
    bench = Workbench.of(NETWORKS[network](folder, loaders(folder)))
    if label == "with fisher":
        bench.measure("fisher")
        bench.add_root("fisher")
    else:
        bench.measure_without_data()
        bench.add_root("noise")
    train, test = bench.original(bench.network.training)[1], bench.original(bench.network.test)[1]
    best: tuple[int, bytes, dict[str, Any], float] | None = None
    for settings in GOALS[label]:
        content, _ = bench.content(base_settings(**settings))
        if best is not None and len(content) >= best[0]:
            continue
        accuracy = bench.judge(content, bench.network.training)[1]
        if accuracy >= train - MAX_DROP:
            best = len(content), content, settings, accuracy
    assert best is not None
    peers = nncodec_files(bench, NNCODEC_QPS[network])
    after = bench.judge(best[1], bench.network.test)[1]
    change = f"test {100 * test:.2f} -> {100 * after:.2f} %"
    print(f"{network} {label}: {best[0]:,} bytes, {change}, {best[2]}", flush=True)
    return {
        "original": {"training": train, "test": test},
        "file_bytes": best[0],
        "bytes_without_graph": best[0] - bench.graph_bytes(best[1]),
        "settings": best[2],
        "training": best[3],
        "test": after,
        "nncodec": smallest_within(peers, train - MAX_DROP),
        "nncodec_files": peers,
    }


def why(network: str) -> dict[str, Any]:
    """What makes the order of methods, without running a network: see quantizer_reasons.py."""
    folder = required_data_folder()
    bench = Workbench.of(NETWORKS[network](folder, loaders(folder)))
    bench.measure("fisher", bench.network.calibration[:N_FISHER])
    sensitivities = bench.sensitivities["fisher"]
    assert sensitivities is not None
    pools = {"entropy": (bench.source.tensors, sensitivities)}
    if network in TRIALS:
        pools["entropy, batch norms apart"] = unfolded(bench, sensitivities)
    found: dict[str, Any] = {"layers": layer_scales(bench.source.tensors, sensitivities)}
    for name, (weights, own) in pools.items():
        found[name] = reasons(weights, own)
        for label, ratios in found[name].items():
            print(f"{network}, {name}, sensitivities {label}: {ratios}", flush=True)
    return found


def batch_norms_apart(network: str) -> dict[str, Any]:
    """The order of k-means and Hessian-weighted k-means without folding: see quantizer_unfolded.py."""
    folder = required_data_folder()
    bench = Workbench.of(NETWORKS[network](folder, loaders(folder)))
    bench.measure("fisher", bench.network.calibration[:N_FISHER])
    clusters = RATES[network]["clusters"]
    found = unfolded_ratios(bench, clusters, TRIALS[network].n_test, lambda line: print(line, flush=True))
    print(f"{network}, batch norms apart: {found}", flush=True)
    return found


def try_reasons(network: str) -> dict[str, Any]:
    """What makes the order of methods, in files: see quantizer_trials.py."""
    folder = required_data_folder()
    bench = Workbench.of(NETWORKS[network](folder, loaders(folder)))
    return trials(bench, TRIALS[network], lambda line: print(f"{network}: {line}", flush=True))


def read_results() -> dict[str, Any]:
    path = RESULTS / "quantizers.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def save_results(changes: dict[str, Any]) -> None:
    """Add to the results; parts may run side by side."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "quantizers.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_results()
        points = {**known.get("points", {}), **changes.pop("points", {})}
        write("quantizers", {**known, **changes, "points": points})


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"ordering {name}": partial(ordering, name) for name in NETWORKS},
    **{f"goals {name} {label}": partial(goals, name, label) for name in NNCODEC_QPS for label in GOALS},
    **{f"rows {name}": partial(rows, name) for name in SMALL_NETWORKS},
    **{f"why {name}": partial(why, name) for name in NETWORKS},
    **{f"trials {name}": partial(try_reasons, name) for name in TRIALS},
    **{f"unfolded {name}": partial(batch_norms_apart, name) for name in TRIALS},
    "speed": speed,
    "optimum": optimum,
    **{f"memory {method}": partial(memory, method) for method in METHODS},
}


def main() -> None:
    torch.set_num_threads(1)
    wanted = [word for word in sys.argv[1:] if word != "--fresh"]
    if "--fresh" in sys.argv:
        (RESULTS / "quantizers.json").unlink(missing_ok=True)
    for name, part in PARTS.items():
        if wanted and not any(name.startswith(word) for word in wanted):
            continue
        started = time.perf_counter()
        found = part()
        found["wall_seconds"] = round(time.perf_counter() - started, 1)
        versions = machine("numpy", "numba", "torch", "onnxruntime", "flash1dkmeans")
        save_results({"machine": versions, name: found})


if __name__ == "__main__":
    main()
