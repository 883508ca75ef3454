"""The whole path on scikit-learn's digits: train, convert, run without torch, export to ONNX.

``make demo`` runs it. Nothing is downloaded; the data ships with scikit-learn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nqconvert
from nqruntime import InferenceSession

DENSITY = 0.06
SMALLEST_RATIO = 60
LARGEST_LOSS = 0.005

# Runs in a process of its own that must never import torch.
EVALUATION = """
import json, sys
import numpy as np
from nqruntime import InferenceSession
path, data = sys.argv[1:]
arrays = np.load(data)
session = InferenceSession(path)
name = session.get_inputs()[0].name
logits = session.run(None, {name: arrays["images"]})[0]
assert "torch" not in sys.modules, "torch was imported"
hits = float((logits.argmax(axis=1) == arrays["labels"]).mean())
print(json.dumps({"accuracy": hits, "engine": session.engine}))
"""


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images (n, 1, 8, 8) in [0, 1] and labels, then test images and labels."""
    loaded = load_digits()
    images = (loaded.images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], loaded.target[order]
    return images[:1347], labels[:1347], images[1347:], labels[1347:]


def mlp() -> nn.Module:
    """64-300-100-10, LeNet-300-100's shape on 8 x 8 images: 50,610 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def cnn() -> nn.Module:
    """Two convolutions with batch norm, two linear layers: 151,338 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def batches(images: np.ndarray, labels: np.ndarray) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Shuffled batches of 64."""
    return DataLoader(
        TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)), batch_size=64, shuffle=True
    )


def train(module: nn.Module, loader: DataLoader[tuple[torch.Tensor, ...]], epochs: int) -> nn.Module:
    """Train with Adam and a cosine schedule."""
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    module.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def float_onnx_bytes(module: nn.Module, folder: Path) -> int:
    """Size of the module as a plain float32 ONNX file."""
    lossless = folder / "lossless.nqz"
    nqconvert.convert(module, lossless, example_inputs=torch.zeros(2, 1, 8, 8), preset="lossless")
    return nqconvert.export_onnx(lossless, folder / "float.onnx").total_bytes


def accuracy_without_torch(path: Path, data: Path) -> tuple[float, str]:
    """Measure accuracy from the file in a fresh process that never imports torch."""
    done = subprocess.run(
        [sys.executable, "-c", EVALUATION, str(path), str(data)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the evaluation process failed:\n{done.stderr}")
    result = json.loads(done.stdout)
    return result["accuracy"], result["engine"]


def exported_difference(path: Path, target: Path, images: np.ndarray) -> float:
    """Export to ONNX and compare ONNX Runtime's outputs with those of the session on the file."""
    import onnxruntime

    nqconvert.export_onnx(path, target, form="codebook")
    exported = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    with InferenceSession(path, engine="ort") as session:
        feeds = {session.get_inputs()[0].name: images}
        ours, theirs = session.run(None, feeds)[0], exported.run(None, feeds)[0]
    return float(np.abs(ours - theirs).max())


def show(name: str, module: nn.Module, folder: Path) -> list[str]:
    """Take one network through the whole path; returns a row of the final table."""
    train_x, train_y, test_x, test_y = digits()
    loader = batches(train_x, train_y)
    started = time.perf_counter()
    train(module, loader, epochs=12)
    with torch.inference_mode():
        before = float((module(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).mean())
    print(f"{name}: trained in {time.perf_counter() - started:.1f} s, test accuracy {100 * before:.2f} %\n")
    path = folder / f"{name}.nqz"
    report = nqconvert.convert(
        module,
        path,
        example_inputs=torch.from_numpy(train_x[:256]),
        preset="sparse-grids",
        density=DENSITY,
        training=nqconvert.Training(loader=loader, loss=nn.functional.cross_entropy, epochs=32, lr=2e-3),
    )
    print(f"{report}\n")
    data = folder / "test.npz"
    np.savez(data, images=test_x, labels=test_y)
    after, engine = accuracy_without_torch(path, data)
    onnx_bytes = float_onnx_bytes(module, folder)
    difference = exported_difference(path, folder / f"{name}.onnx", test_x)
    ratio = onnx_bytes / report.file_bytes
    if ratio < SMALLEST_RATIO or before - after > LARGEST_LOSS or difference != 0.0:
        raise SystemExit(
            f"{name}: ratio {ratio:.1f}, accuracy {before:.4f} -> {after:.4f}, export differs by {difference}"
        )
    exported_bytes = os.path.getsize(folder / f"{name}.onnx")
    return [
        name,
        f"{onnx_bytes:,}",
        f"{report.file_bytes:,}",
        f"{ratio:.1f} x",
        f"{100 * before:.2f} %",
        f"{100 * after:.2f} % ({engine})",
        f"{exported_bytes:,}",
        f"{difference:.0f}",
    ]


def main() -> None:
    """Run both networks and print the table."""
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = [show("mlp", mlp(), Path(folder)), show("cnn", cnn(), Path(folder))]
    header = [
        "network",
        "float32 ONNX",
        ".nqz bytes",
        "smaller",
        "accuracy",
        "from the file, no torch",
        "codebook ONNX",
        "ONNX difference",
    ]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"\ndemo took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
