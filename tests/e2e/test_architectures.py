"""Every quantizer on every kind of layer: the file computes what its decoded weights compute."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import nqformat
from nqconvert.encoding import Encoding
from nqconvert.presets import preset_settings
from nqconvert.sources import ModelSource, load_source
from nqruntime import InferenceSession


class Recurrent(nn.Module):
    """LSTM and GRU, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, batch_first=True)
        self.gru = nn.GRU(16, 10, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(self.lstm(x)[0])[0]


class Attention(nn.Module):
    """Attention with projections of its own, layer norms, and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.inner, self.outer = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.inner(self.first(x)).chunk(3, dim=-1)
        x = x + self.outer(torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v)
        return x + self.down(torch.relu(self.up(self.second(x))))


class Recommender(nn.Module):
    """Scores of pairs of two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(40, 24), nn.Embedding(60, 24)
        self.score = nn.Sequential(nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.score(torch.cat([self.users(user), self.items(item)], dim=1))


def volumes() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(3),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(10, 6, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(6, 12, 3),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.ReLU(), nn.Linear(30, 8)),
        torch.randn(3, 20, generator=torch.Generator().manual_seed(0)),
    ),
    "cnn": (volumes, torch.randn(2, 1, 6, 4, 4, generator=torch.Generator().manual_seed(1))),
    "recurrent": (Recurrent, torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))),
    "attention": (Attention, torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(3))),
    "recommender": (Recommender, (torch.tensor([3, 39, 0]), torch.tensor([59, 1, 1]))),
}

SETTINGS: dict[str, dict[str, Any]] = {
    "kmeans": {},
    "kmeans by channel": {"method": "kmeans", "scope": "channel"},
    "hessian-kmeans": {},
    "uniform": {"step": 0.3},
    "uniform by channel": {"method": "uniform", "scope": "channel", "step": 0.3},
    "ecsq": {"rate_penalty": 1e-3},
    "ecsq by channel": {"method": "ecsq", "scope": "channel"},
    "inq": {},
    "vq": {"width": 4},
    "vq by place": {"method": "vq", "width": 2, "product": True},
    "none": {},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    """The models with random weights, exported once, by the exporter that takes no seconds."""
    folder, found = tmp_path_factory.mktemp("models"), {}
    for name, (make, inputs) in MODELS.items():
        torch.manual_seed(len(name))
        path = folder / f"{name}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(make().eval(), inputs, str(path), dynamo=False, opset_version=17)
        found[name] = load_source(path)
    return found


@pytest.mark.parametrize("case", sorted(SETTINGS))
@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_file_computes_what_its_decoded_weights_compute(
    name: str, case: str, sources: dict[str, ModelSource], tmp_path: Path
) -> None:
    source, inputs = sources[name], MODELS[name][1]
    arrays = [one.numpy() for one in (inputs if isinstance(inputs, tuple) else (inputs,))]
    feeds = dict(zip(source.input_names, arrays, strict=True))
    overrides = {"method": case, "clusters": 6, **SETTINGS[case]}
    settings = preset_settings("deep-compression", **overrides)
    encoding = Encoding(source=source)
    quantized = encoding.quantize(settings)
    path, plain = tmp_path / "m.nqz", tmp_path / "plain.nqz"
    path.write_bytes(encoding.content(settings, quantized))
    decoded = {key: tensor.decode() for key, tensor in quantized.tensors.items()}
    nqformat.save_file({**decoded, **source.views}, plain, graph=source.graph)

    stored = nqformat.load_file(path)
    assert all(stored[key].tobytes() == array.tobytes() for key, array in decoded.items())
    wanted = InferenceSession(plain, engine="ort").run(None, feeds)
    assert_equal(InferenceSession(path, engine="ort").run(None, feeds), wanted, 0.0)
    assert_equal(InferenceSession(path).run(None, feeds), wanted, 1e-5)
    lossy = [key for key in decoded if decoded[key].tobytes() != source.tensors[key].tobytes()]
    assert bool(lossy) == (case != "none")


def assert_equal(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()
