"""Post-training quantization (method obs) on trained networks, beside NNCodec.

    NQZ_DATA=path/to/data [NQZ_PEERS=path/to/peers NQZ_PEERS_PYTHON=python-with-nncodec] \
        python benchmarks/posttraining.py [NETWORK ...]

Calibration inputs are training images without labels. The rates are fixed beforehand; the row "chosen" is the
smallest file that agrees with the network on 99.5 % of further training images, if one does. Sizes are those
of whole files, graph included. Writes the networks' keys of benchmarks/results/posttraining.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import loaders, machine, read, required_data_folder, state_dict, write
from networks import NETWORKS, Labelled, Network, cifar_images, mnist_images

from nqconvert import load_source
from nqconvert.encoding import Encoding
from nqconvert.obs.surgeon import CalibrationSettings, prepare_surgeon
from nqconvert.presets import preset_settings
from nqconvert.quantization import continuous_weights

AGREEMENT = 0.995
RATES = {
    "lenet300_p8": (0.003, 0.005, 0.007, 0.01, 0.014, 0.02),
    "lenet5_p8": (0.005, 0.007, 0.01, 0.014, 0.02),
    "resnet32_jpegft": (0.1, 0.2, 0.4),
}
CALIBRATION = {"lenet300_p8": 4000, "lenet5_p8": 2000, "resnet32_jpegft": 512}
N_TEST = {"lenet300_p8": 10_000, "lenet5_p8": 10_000, "resnet32_jpegft": 1000}
N_TRAINING = {"lenet300_p8": 2000, "lenet5_p8": 2000, "resnet32_jpegft": 500}
QPS = {
    "lenet300_p8": (-20, -16),
    "lenet5_p8": (-20, -18),
    "resnet32_jpegft": (-24, -20),
}
_BATCH = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Unlabelled calibration inputs, further training images, test images."""

    calibration: np.ndarray
    training: Labelled
    test: Labelled

    @classmethod
    def of(cls, network: Network, load: Any) -> Data:
        cifar = network.name.startswith("resnet")
        images = cifar_images if cifar else mnist_images
        split = load.cifar10 if cifar else load.mnist
        inputs, _ = split("train")
        test_inputs, test_labels = split("test")
        n_test = N_TEST[network.name]
        return cls(
            calibration=images(inputs[: CALIBRATION[network.name]]),
            training=tuple(part[-N_TRAINING[network.name] :] for part in network.training),
            test=(images(test_inputs[:n_test]), test_labels[:n_test].astype(np.int64)),
        )


def answers(module: Any, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        parts = [
            module(torch.from_numpy(images[start : start + _BATCH])).argmax(1)
            for start in range(0, len(images), _BATCH)
        ]
    return torch.cat(parts).numpy()


def file_answers(content: bytes, images: np.ndarray) -> np.ndarray:
    from nqruntime import InferenceSession

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.nqz"
        path.write_bytes(content)
        with InferenceSession(path, engine="ort", threads=1) as session:
            name = session.get_inputs()[0].name
            parts = [
                session.run(None, {name: images[start : start + _BATCH]})[0].argmax(1)
                for start in range(0, len(images), _BATCH)
            ]
    return np.concatenate(parts)


def right(found: np.ndarray, labels: np.ndarray) -> float:
    return float((found == labels).mean())


def ours(network: Network, data: Data) -> dict[str, Any]:
    """Files at several rates, from one set of Hessians."""
    source = load_source(network.module, example_inputs=data.calibration[:2])
    settings = preset_settings("post-training", samples=len(data.calibration))
    cpu, wall = time.process_time(), time.perf_counter()
    surgeon = prepare_surgeon(
        source,
        continuous_weights(source.tensors),
        data.calibration,
        CalibrationSettings(samples=settings.samples, seed=0, progress=lambda line: None),
    )
    measured = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    encoding = Encoding(source=source, surgeon=surgeon)
    expected = answers(network.module, data.training[0])
    rows: list[dict[str, Any]] = []
    contents = {}
    for rate in RATES[network.name]:
        cpu = time.process_time()
        tried = preset_settings("post-training", samples=settings.samples, rate_penalty=rate)
        model = encoding.quantize(tried)
        content = encoding.content(tried, model)
        seconds = time.process_time() - cpu
        agreement = right(file_answers(content, data.training[0]), expected)
        rows.append(
            {
                "rate_penalty": rate,
                "file_bytes": len(content),
                "cpu_seconds": seconds,
                "predicted_loss": model.loss,
                "agreement": agreement,
            }
        )
        contents[rate] = content
        print(f"{network.name} {rows[-1]}", flush=True)
    kept = [row for row in rows if row["agreement"] >= AGREEMENT]
    chosen = min(kept, key=lambda row: row["file_bytes"], default=None)
    for row in rows:
        row["test"] = right(file_answers(contents[row["rate_penalty"]], data.test[0]), data.test[1])
        print(f"{network.name} {row['file_bytes']:,} bytes, test {row['test']:.4f}", flush=True)
    return {"hessians": measured, "notes": surgeon.notes, "rows": rows, "chosen": chosen}


def nncodec(network: Network, weights: Path, data: Data) -> list[dict[str, Any]]:
    """NNCodec on the state dict as it is, dependent quantization on; empty if it is not installed."""
    python = os.environ.get("NQZ_PEERS_PYTHON")
    if not python:
        print("NNCodec not measured: set NQZ_PEERS and NQZ_PEERS_PYTHON")
        return []
    rows = []
    qps = [str(qp) for qp in QPS[network.name]]
    worker = Path(__file__).parent / "nncodec_model.py"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "tensors.npz", **state_dict(weights))
        command = [python, str(worker), str(folder / "tensors.npz"), str(folder), *qps]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        n_bytes = json.loads(done.stdout.splitlines()[-1])
        for qp in qps:
            decoded = {n: torch.from_numpy(a) for n, a in np.load(folder / f"{qp}.npz").items()}
            network.module.load_state_dict({**network.module.state_dict(), **decoded})
            test = right(answers(network.module, data.test[0]), data.test[1])
            rows.append({"qp": int(qp), "file_bytes": n_bytes[qp], "test": test})
            print(f"{network.name} NNCodec {rows[-1]}", flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    folder = required_data_folder()
    load = loaders(folder)
    results = read("posttraining")
    results["machine"] = machine("numpy", "torch", "onnxruntime", "numba")
    for name in sys.argv[1:] or NETWORKS:
        network = NETWORKS[name](folder, load)
        data = Data.of(network, load)
        before = right(answers(network.module, data.test[0]), data.test[1])
        print(f"{name}: {before:.4f} before", flush=True)
        row = {"before": before, "n_test": len(data.test[1]), "calibration": len(data.calibration)}
        row.update(ours(network, data))
        subfolder = "resnet_cifar10" if name.startswith("resnet") else "pruned_lenets"
        row["nncodec"] = nncodec(network, folder / subfolder / f"{name}.pt", data)
        results = {**read("posttraining"), "machine": results["machine"], name: row}
        write("posttraining", results)


if __name__ == "__main__":
    main()
