"""A network of signs times factors: converted, run and exported without any change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import nqconvert
import nqformat
from nqruntime import InferenceSession


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Signs in one layer, signs with a factor for each output in two, ternary ones in another."""
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 40),
        nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip
    with torch.no_grad():
        for place in (0, 2, 5, 7):
            weight = made[place].weight
            signs = torch.sign(weight) * (weight.abs() > (0.02 if place == 5 else 0))
            factors = weight.abs().flatten(1).mean(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
            weight.copy_((signs if place == 7 else signs * factors) + 0.0)
    return made.eval()


@pytest.mark.parametrize("method", ["kmeans", "uniform", "vq", "none"])
def test_signs_stay_exact_from_the_module_to_onnx(method: str, network: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "m.nqz"
    nqconvert.convert(network, path, example_inputs=x, method=method, clusters=2, strict=method != "none")
    stored = nqformat.load_file(path)
    kept = [array for array in stored.values() if array.ndim > 1]
    wanted = [p.detach().numpy() for p in network.parameters() if p.ndim > 1]
    assert sorted(np.sort(a, axis=None).tobytes() for a in kept) == sorted(
        np.sort(a, axis=None).tobytes() for a in wanted
    )
    original = network(x).detach().numpy()
    for engine in ("native", "ort"):
        session = InferenceSession(path, engine=engine)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert np.abs(found - original).max() <= 1e-5 * np.abs(original).max()
    for form in ("dense", "codebook"):
        report = nqconvert.export_onnx(path, tmp_path / "m.onnx", form=form)
        assert report.max_difference is not None and report.max_difference <= 1e-6
        exported = onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"])
        found = exported.run(None, {exported.get_inputs()[0].name: x.numpy()})[0]
        assert np.abs(found - original).max() <= 1e-5 * np.abs(original).max()


def test_a_binary_network_takes_about_a_bit_for_each_weight(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.nqz"
    x = torch.zeros(1, 1, 8, 8)
    nqconvert.convert(network, path, example_inputs=x, rest="bfloat16")
    with nqformat.safe_open(path) as file:
        scaled = [file.info(name) for name in file if file.info(name).n_scales]
    assert len(scaled) == 3
    n_weights = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    n_bits = 8 * path.stat().st_size - 8 * 4 * 68
    assert n_bits < 1.8 * n_weights + 8 * 1200
