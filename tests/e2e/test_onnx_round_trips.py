"""Whole networks through .onnx -> .nqz -> .onnx and through every export form (slow)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nqconvert import convert, export_onnx
from nqconvert.model_comparison import compare_models

pytestmark = pytest.mark.slow

TORCH = [
    "LeNet-5",
    "ResNet-32",
    "MobileNetV2-like",
    "BERT-like encoder",
    "BiLSTM",
    "GRU",
    "tied embedding",
    "U-Net",
]
CONVOLUTIONAL = {"LeNet-5", "ResNet-32", "MobileNetV2-like", "U-Net"}


def assert_round_trip(path: Path, folder: Path, feeds: dict[str, np.ndarray] | None = None) -> None:
    convert(path, folder / "m.nqz", preset="lossless")
    report = export_onnx(folder / "m.nqz", folder / "back.onnx", feeds=feeds)
    comparison = compare_models(path, folder / "back.onnx")
    assert comparison.same_graph and not comparison.differing
    assert report.max_difference == 0


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks as PyTorch exports them."""
    from onnx_networks import TORCH_NETWORKS, export_network

    folder = tmp_path_factory.mktemp("networks")
    paths = {name: folder / f"{name}.onnx" for name in TORCH_NETWORKS}
    for name, path in paths.items():
        export_network(name, path)
    return paths


@pytest.mark.parametrize("name", TORCH)
def test_networks_come_back_bit_identical(name: str, networks: dict[str, Path], tmp_path: Path) -> None:
    assert_round_trip(networks[name], tmp_path)


@pytest.mark.parametrize("name", TORCH)
def test_reduced_networks_in_every_form(name: str, networks: dict[str, Path], tmp_path: Path) -> None:
    from onnx_networks import reduced

    import nqformat
    from nqconvert.sources import load_source

    source = load_source(networks[name])
    for density in (None, 0.08):
        tensors = reduced(source.tensors, density=density)
        nqformat.save_file({**tensors, **source.views}, tmp_path / "m.nqz", graph=source.graph)
        for form in ("dense", "codebook", "sparse", "auto", "qdq"):
            report = export_onnx(tmp_path / "m.nqz", tmp_path / "m.onnx", form=form)
            assert report.max_difference is not None
            exact = name in CONVOLUTIONAL and form in ("dense", "codebook")
            assert report.max_difference <= (0 if exact else 1e-6)


def test_light_models_come_back_bit_identical(tmp_path: Path) -> None:
    from onnx_networks import light_models

    models = light_models()
    assert len(models) >= 5
    for path in models.values():
        assert_round_trip(path, tmp_path)


@pytest.mark.parametrize(("package", "n_models"), [("silero-vad", 5), ("basic-pitch", 1)])
def test_models_that_packages_bring_come_back_bit_identical(
    package: str, n_models: int, tmp_path: Path
) -> None:
    """From installed packages, or from wheels in the folder that NQZ_WHEELS names."""
    from onnx_models import feeds_of
    from onnx_networks import packaged_models

    wheels = os.environ.get("NQZ_WHEELS")
    models = packaged_models(Path(wheels) if wheels else None, tmp_path)
    found = {title: path for title, path in models.items() if title.startswith(package)}
    if not found:
        pytest.skip(f"{package} is not installed, and NQZ_WHEELS names no folder with its wheel")
    assert len(found) >= n_models
    for path in found.values():
        assert_round_trip(path, tmp_path, feeds_of(path))
