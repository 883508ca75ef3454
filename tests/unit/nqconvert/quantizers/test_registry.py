import os
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from nqconvert import method_registry, quantizers
from nqconvert.quantizers import get_quantizer, quantizer_names
from nqconvert.quantizers.kmeans import quantize_kmeans
from nqconvert.quantizers.lossless import quantize_lossless


def test_own_quantizers_are_known_without_installed_metadata(monkeypatch):
    monkeypatch.setattr(method_registry, "entry_points", lambda **_: [])
    assert get_quantizer("none") is quantize_lossless
    assert get_quantizer("kmeans") is quantize_kmeans
    assert quantizer_names() == ["ecsq", "hessian-kmeans", "inq", "kmeans", "none", "obs", "uniform", "vq"]


def test_a_plugin_is_found_and_cannot_replace_our_own(monkeypatch):
    point = EntryPoint("mine", "math:sqrt", quantizers.ENTRY_POINT_GROUP)
    rival = EntryPoint("kmeans", "math:sqrt", quantizers.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        method_registry,
        "entry_points",
        lambda group, name=None: [p for p in (point, rival) if name in (None, p.name)],
    )
    assert get_quantizer("mine")(9.0) == 3.0
    assert get_quantizer("kmeans") is quantize_kmeans
    assert "mine" in quantizer_names()


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown quantizer 'k-means'; known: .*kmeans, none"):
        get_quantizer("k-means")


def test_importing_quantizers_imports_neither_numba_nor_torch():
    code = (
        "import sys; sys.path[:0] = ['.', 'converters']\n"
        "import numpy as np\n"
        "from nqconvert.quantizers import get_quantizer, QuantizerSettings\n"
        "w = np.random.default_rng(0).normal(size=400).astype(np.float32)\n"
        "get_quantizer('kmeans')({'w': w}, None, QuantizerSettings(clusters=8))\n"
        "print(sorted({'numba', 'torch', 'onnx'} & set(sys.modules)))"
    )
    environment = {**os.environ, "NQFORMAT_KERNELS": "auto"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"
