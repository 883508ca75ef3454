"""Predicted against measured changes of the loss."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import nqconvert
from nqconvert.sensitivity import SensitivitySettings, measure_sensitivities
from nqconvert.sensitivity.loss_check import LossChange, LossCheck, check_losses
from nqconvert.sources import ModelSource
from nqformat import ConversionError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def linear() -> tuple[Any, np.ndarray]:
    torch.manual_seed(0)
    inputs = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    return torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Linear(12, 3)).eval(), inputs


def test_a_squared_error_is_predicted_exactly_for_one_weight(linear):
    """With one weight changed there are no cross terms, and a quadratic loss has nothing beyond."""
    module, inputs = linear
    source = nqconvert.load_source(module, example_inputs=inputs[:2])
    with torch.no_grad():
        targets = module(torch.tensor(inputs)).numpy()
    settings = SensitivitySettings(loss=torch.nn.functional.mse_loss, samples=64, batch_size=16)
    name, weight = next((n, a) for n, a in source.tensors.items() if a.shape == (3, 12))
    hidden = inputs @ module[0].weight.detach().numpy().T + module[0].bias.detach().numpy()
    exact = np.tile(2 * np.square(hidden).mean(axis=0) / 3, (3, 1)).astype(np.float32)
    changed = weight.copy()
    changed[1, 4] += 0.3
    found = check_losses(source, {name: changed}, {name: exact}, (inputs, targets), settings)
    assert found.original_loss == pytest.approx(0, abs=1e-10) and found.n_samples == 64
    assert found.tensors[0].measured == pytest.approx(found.tensors[0].predicted, rel=1e-3)
    assert found.together.measured == pytest.approx(found.together.predicted, rel=1e-3)
    assert found.correlation is None and found.rank_correlation is None


def test_labels_are_drawn_where_none_are_given_and_tied_weights_change_together(linear):
    _module, inputs = linear

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(0.3 * torch.randn(8, 8, generator=torch.manual_seed(1)))
            self.out = torch.nn.Linear(8, 4)

        def forward(self, x: Any) -> Any:
            return self.out(torch.relu(x @ self.weight) @ self.weight.T)

    tied = Tied().eval()
    source = nqconvert.load_source(tied, example_inputs=inputs[:2])
    stored = {n: a for n, a in source.tensors.items() if a.shape == (8, 8)}
    assert len(stored) == 1
    name, weight = next(iter(stored.items()))
    settings = SensitivitySettings(samples=64)
    h = {name: np.ones((8, 8), np.float32)}
    found = check_losses(source, {name: np.zeros_like(weight)}, h, inputs, settings)
    again = check_losses(source, {name: np.zeros_like(weight)}, h, inputs, settings)
    assert found.to_json()["changes"] == again.to_json()["changes"]
    with torch.no_grad():
        tied.weight.zero_()
        bias = tied.out.bias.numpy()
    logits = np.log(np.exp(bias) / np.exp(bias).sum())
    total = found.original_loss + found.tensors[0].measured
    assert -logits.max() - 1e-5 <= total <= -logits.min() + 1e-5


def test_predictions_of_a_trained_network_follow_the_measured_changes():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 300)
    centres = rng.normal(size=(4, 10)) * 2
    inputs = (centres[labels] + rng.normal(size=(300, 10))).astype(np.float32)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh()]
    module = torch.nn.Sequential(*layers, torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    x, y = torch.tensor(inputs), torch.tensor(labels)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    source = nqconvert.load_source(module.eval(), example_inputs=inputs[:2])
    h = measure_sensitivities(module, inputs, method="fisher", samples=300)
    h = {n: a for n, a in h.items() if a.ndim == 2}
    noise = dict(zip(h, (0.02, 0.05, 0.1, 0.2), strict=True))
    changed = {
        n: (source.tensors[n] + noise[n] * rng.normal(size=a.shape)).astype(np.float32) for n, a in h.items()
    }
    found = check_losses(source, changed, h, (inputs, labels), SensitivitySettings(samples=300))
    assert [c.predicted for c in found.tensors] == sorted((c.predicted for c in found.tensors), reverse=True)
    assert found.correlation is not None and found.correlation > 0.5
    assert "correlation" in str(found)
    json.dumps(found.to_json(), allow_nan=False)


def test_ranks_tell_the_order_whatever_the_scale():
    changes = tuple(
        LossChange(name=str(i), predicted=p, measured=m)
        for i, (p, m) in enumerate([(1, 9), (2, 10), (30, 11)])
    )
    check = LossCheck(original_loss=0.0, n_samples=1, tensors=changes, together=changes[0], seconds=0.0)
    assert check.rank_correlation == pytest.approx(1) and check.correlation < 0.9


def test_a_state_dict_cannot_be_checked():
    source = ModelSource(tensors={"w": np.ones((3, 3), np.float32)})
    h = {"w": np.ones((3, 3), np.float32)}
    with pytest.raises(ConversionError, match="no graph"):
        check_losses(source, h, h, np.ones((2, 3)), SensitivitySettings())
