"""Sensitivities against BackPACK, an independent implementation of the same quantities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nqconvert.sensitivity import measure_sensitivities

torch = pytest.importorskip("torch")
backpack = pytest.importorskip("backpack")
extensions = pytest.importorskip("backpack.extensions")
nn = torch.nn

N_SAMPLES = 12


def network() -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(6, 4)).double()


def samples() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(N_SAMPLES, 1, 6, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 4, (N_SAMPLES,), generator=generator)


def by_backpack(extension: Any, attribute: str) -> dict[str, np.ndarray]:
    inputs, targets = samples()
    module = backpack.extend(network())
    loss = backpack.extend(nn.CrossEntropyLoss())(module(inputs), targets)
    with backpack.backpack(extension):
        loss.backward()
    return {name: getattr(p, attribute).detach().numpy() for name, p in module.named_parameters()}


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    assert list(found) == list(wanted)
    largest = max(np.abs(array).max() for array in wanted.values())
    for name, array in wanted.items():
        assert np.abs(found[name] - array).max() <= tolerance * largest


def test_empirical_is_the_mean_of_squared_gradients() -> None:
    squares = by_backpack(extensions.SumGradSquared(), "sum_grad_squared")
    wanted = {name: array * N_SAMPLES for name, array in squares.items()}  # its gradients are of the mean
    assert_close(measure_sensitivities(network(), samples(), method="empirical"), wanted, 1e-6)


def test_fisher_tends_to_the_diagonal_of_the_generalised_gauss_newton_matrix() -> None:
    wanted = by_backpack(extensions.DiagGGNExact(), "diag_ggn_exact")
    inputs, _ = samples()
    found = measure_sensitivities(
        network(), inputs.repeat(1000, 1, 1, 1), method="fisher", samples=12_000, batch_size=500
    )
    assert_close(found, wanted, 0.05)  # 12,000 sampled labels: a few per cent of noise


def test_hutchinson_tends_to_the_diagonal_of_the_hessian() -> None:
    wanted = by_backpack(extensions.DiagHessian(), "diag_h")
    found = measure_sensitivities(network(), samples(), method="hutchinson", probes=600)
    assert_close(found, {name: np.maximum(array, 0) for name, array in wanted.items()}, 0.1)


def test_becker_is_the_diagonal_of_the_gauss_newton_matrix_of_the_last_layer() -> None:
    wanted = by_backpack(extensions.DiagGGNExact(), "diag_ggn_exact")
    found = measure_sensitivities(network(), samples(), method="becker")
    for name in ("6.weight", "6.bias"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)
