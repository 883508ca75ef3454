"""Sensitivities against exact Hessians and per-sample gradients of tiny networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nqconvert.sensitivity import (
    get_sensitivity,
    measure_sensitivities,
    predicted_loss_change,
    sensitivity_names,
)
from nqformat import ConversionError

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional


def mlp(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def samples(n: int = 12, seed: int = 1) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (n,), generator=generator)


def exact_diagonal(module: Any, inputs: Any, targets: Any, loss: Any) -> dict[str, np.ndarray]:
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def value(values: Any) -> Any:
        return loss(torch.func.functional_call(module, values, (inputs,)), targets)

    hessian = torch.func.hessian(value)(parameters)
    return {
        name: torch.diagonal(hessian[name][name].reshape(p.numel(), p.numel())).reshape(p.shape).numpy()
        for name, p in parameters.items()
    }


def assert_close(actual: dict[str, np.ndarray], expected: dict[str, Any], rtol: float = 1e-5) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        wanted = np.asarray(array)
        assert actual[name].dtype == np.float32
        np.testing.assert_allclose(actual[name], wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def test_names_are_listed_and_unknown_ones_refused() -> None:
    assert set(sensitivity_names()) >= {
        *("activation", "adam", "becker", "empirical", "fisher", "hutchinson", "none")
    }
    with pytest.raises(ValueError, match="known: activation, adam"):
        get_sensitivity("fishy")
    assert measure_sensitivities(mlp(), method="none") == {}


@pytest.mark.parametrize("batch_size", [1, 5, 50])
def test_empirical_is_the_mean_of_squared_gradients_of_single_samples(batch_size: int) -> None:
    module, (inputs, targets) = mlp(), samples()
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def value(values: Any, one: Any, target: Any) -> Any:
        outputs = torch.func.functional_call(module, values, (one[None],))
        return functional.cross_entropy(outputs, target[None])

    slopes = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0))(parameters, inputs, targets)
    expected = {name: slope.square().mean(dim=0) for name, slope in slopes.items()}
    found = measure_sensitivities(module, (inputs, targets), method="empirical", batch_size=batch_size)
    assert_close(found, expected)


def test_empirical_works_where_torch_cannot_vectorise() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x: Any) -> Any:
            return self.layer(x) * (2.0 if x.sum().item() > 0 else 1.0)

    module, (inputs, targets) = Branching(), samples()
    one_by_one = measure_sensitivities(module, (inputs, targets), method="empirical", batch_size=1)
    assert_close(
        measure_sensitivities(module, (inputs, targets), method="empirical", batch_size=6), one_by_one
    )


def test_fisher_of_a_softmax_layer_tends_to_its_exact_hessian() -> None:
    module = nn.Linear(4, 3).double()
    inputs, targets = samples(n=4)
    exact = exact_diagonal(module, inputs, targets, functional.cross_entropy)
    repeated = inputs.repeat(3000, 1)
    found = measure_sensitivities(module, repeated, method="fisher", samples=12000, batch_size=200)
    assert_close(found, exact, rtol=0.1)  # 12,000 sampled labels: a few per cent of noise


def test_fisher_of_a_squared_error_tends_to_its_gauss_newton_matrix() -> None:
    module = nn.Linear(4, 3).double()
    inputs, _ = samples(n=4)
    exact = exact_diagonal(module, inputs, torch.zeros(4, 3), functional.mse_loss)
    settings = {"samples": 12000, "batch_size": 200, "loss": functional.mse_loss}
    found = measure_sensitivities(module, inputs.repeat(3000, 1), method="fisher", **settings)
    assert_close(found, exact, rtol=0.1)


@pytest.mark.parametrize("method", ["fisher", "hutchinson"])
def test_the_seed_decides_the_result(method: str) -> None:
    module, (inputs, _) = mlp(), samples()
    first, again, other = (
        measure_sensitivities(module, inputs, method=method, seed=seed)["0.weight"] for seed in (3, 3, 4)
    )
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert module.training


def test_hutchinson_tends_to_the_exact_hessian() -> None:
    module, (inputs, targets) = mlp(), samples()
    exact = exact_diagonal(module, inputs, targets, functional.cross_entropy)
    found = measure_sensitivities(module, (inputs, targets), method="hutchinson", probes=4000)
    largest = max(np.abs(array).max() for array in exact.values())
    for name, array in exact.items():
        assert np.abs(found[name] - np.maximum(array, 0)).max() < 0.05 * largest


def test_hutchinson_is_exact_where_the_hessian_is_diagonal() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(4))

        def forward(self, x: Any) -> Any:
            return x * self.factor

    inputs = torch.eye(4) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = measure_sensitivities(
        Scale(), (inputs, torch.zeros(4, 4)), method="hutchinson", probes=1, loss=functional.mse_loss
    )
    np.testing.assert_allclose(found["factor"], np.array([1, 4, 9, 16]) * 2 / 16, rtol=1e-6)


def test_becker_is_exact_for_a_softmax_layer() -> None:
    module, (inputs, targets) = nn.Linear(4, 3).double(), samples()
    exact = exact_diagonal(module, inputs, targets, functional.cross_entropy)
    for loss in (None, functional.cross_entropy, lambda y, t: functional.nll_loss(y.log_softmax(1), t)):
        found = measure_sensitivities(module, (inputs, targets), method="becker", loss=loss, batch_size=5)
        assert_close(found, exact)


class SmallNet(nn.Module):
    """Convolution that leaves one position, batch norm, a residual sum, functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.side = nn.Linear(18, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        main = functional.relu(self.norm(self.conv(x))).view(x.size(0), -1)
        return self.out(main) + self.side(torch.flatten(x, 1))[:, :3]


def test_becker_is_exact_where_the_output_hessian_is_diagonal_and_no_weight_is_shared() -> None:
    torch.manual_seed(0)
    module = SmallNet().double().eval()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2.0)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(10, 2, 3, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    exact = exact_diagonal(module, inputs, targets, functional.mse_loss)
    found = measure_sensitivities(module, (inputs, targets), method="becker", loss=functional.mse_loss)
    assert_close(found, exact)


def test_becker_follows_pools_and_transposed_convolutions() -> None:
    torch.manual_seed(0)
    layers = [nn.ConvTranspose2d(1, 2, 2, stride=2), nn.MaxPool2d(2), nn.AvgPool2d(2)]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    inputs = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    found = measure_sensitivities(
        module, (inputs, torch.zeros(6, 2, dtype=torch.float64)), method="becker", loss=functional.mse_loss
    )
    # 16 positions are averaged: Becker and LeCun leave out their cross terms, so 1/16 of the bias's 2/2.
    np.testing.assert_allclose(found["0.bias"], 1 / 4 * 1 / 4, rtol=1e-6)
    assert (found["0.weight"] >= 0).all() and found["0.weight"].any()


def test_becker_names_what_it_has_no_rule_for() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(ConversionError, match=r"no rule for LayerNorm .*fisher"):
        measure_sensitivities(module, torch.ones(2, 4), method="becker")


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("named", [True, False])
def test_adam_takes_the_second_moments_of_an_optimizer(power: float, named: bool) -> None:
    module, (inputs, targets) = mlp(), samples()
    entries = list(module.named_parameters()) if named else module.parameters()
    optimizer = torch.optim.Adam(entries, lr=1e-3, betas=(0.9, 0.99))
    for _ in range(3):
        optimizer.zero_grad()
        functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    found = measure_sensitivities(
        module, method="adam", optimizer_state=optimizer.state_dict(), adam_power=power
    )
    expected = {
        name: (optimizer.state[p]["exp_avg_sq"] / (1 - 0.99**3)) ** power
        for name, p in module.named_parameters()
    }
    assert_close(found, expected)


def test_adam_works_by_name_on_plain_arrays_and_from_a_file(tmp_path: Any) -> None:
    weights = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    state = {"b": np.float32([4, 9]), "a": {"exp_avg_sq": np.ones((2, 3))}, "other": np.ones(5)}
    found = measure_sensitivities(weights, method="adam", optimizer_state=state)
    assert found["b"].tolist() == [2.0, 3.0] and set(found) == {"a", "b"}
    slots = {0: {"exp_avg_sq": torch.ones(2, 3), "step": torch.tensor(5.0)}, 1: {"exp_avg_sq": torch.ones(2)}}
    torch.save({"optimizer": {"state": slots, "param_groups": [{"params": [0, 1]}]}}, tmp_path / "opt.pt")
    found = measure_sensitivities(weights, method="adam", optimizer_state=tmp_path / "opt.pt")
    assert found["a"].tolist() == np.ones((2, 3)).tolist()


def test_adam_refuses_a_state_of_another_model() -> None:
    with pytest.raises(ConversionError, match="shape"):
        measure_sensitivities({"a": np.zeros(3)}, method="adam", optimizer_state={"a": np.ones(4)})
    with pytest.raises(ConversionError, match="optimizer_state"):
        measure_sensitivities(mlp(), method="adam")
    with pytest.raises(ConversionError, match="no second moments"):
        measure_sensitivities(mlp(), method="adam", optimizer_state={"x": np.ones(4)})


def test_calibration_is_taken_in_every_form_and_only_as_much_as_asked() -> None:
    module, (inputs, targets) = mlp(), samples()
    loader = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    expected = measure_sensitivities(module, (inputs, targets), method="empirical")
    assert_close(measure_sensitivities(module, loader, method="empirical"), expected)
    first = measure_sensitivities(module, (inputs[:7], targets[:7]), method="empirical")
    assert_close(measure_sensitivities(module, loader, method="empirical", samples=7), first)
    by_name = measure_sensitivities(module, {"input": inputs}, method="fisher")
    assert_close(by_name, measure_sensitivities(module, inputs.numpy(), method="fisher"))


def test_missing_or_unusable_data_is_said() -> None:
    module, (inputs, _) = mlp(), samples()
    with pytest.raises(ConversionError, match="needs targets"):
        measure_sensitivities(module, inputs, method="empirical")
    with pytest.raises(ConversionError, match="needs calibration"):
        measure_sensitivities(module, method="fisher")
    with pytest.raises(ConversionError, match="no sample"):
        measure_sensitivities(module, [], method="fisher")
    with pytest.raises(ConversionError, match="sample_targets"):
        measure_sensitivities(module, inputs, method="fisher", loss=lambda y, t: y.sum())
    with pytest.raises(ConversionError, match="not finite"):
        measure_sensitivities(
            module,
            inputs * np.nan,
            method="hutchinson",
            loss=lambda y, t: (y**4).sum(),
            sample_targets=lambda y, g: y,
        )


def test_other_losses_bring_their_own_targets() -> None:
    module, (inputs, _) = mlp(), samples()
    found = measure_sensitivities(
        module,
        inputs,
        method="fisher",
        loss=lambda outputs, targets: (outputs - targets).abs().sum(),
        sample_targets=lambda outputs, generator: outputs + torch.randn(outputs.shape, generator=generator),
    )
    np.testing.assert_allclose(found["2.bias"], 1.0)


def test_progress_counts_samples_and_frozen_parameters_are_measured() -> None:
    module, lines = mlp(), []
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    found = measure_sensitivities(module, samples(), method="fisher", batch_size=6, progress=lines.append)
    assert found["0.weight"].all()
    assert lines == [f"sensitivity: {n} of at most 1000 samples" for n in (6, 12)]
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_predicted_loss_change_is_that_of_a_quadratic_loss() -> None:
    module, (inputs, targets) = nn.Linear(4, 3).double(), samples()
    h = measure_sensitivities(module, (inputs, targets), method="becker")
    before = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
    after = {name: array.copy() for name, array in before.items()}
    after["weight"][1, 2] += 0.1
    assert predicted_loss_change(before, after, h) == pytest.approx(0.005 * h["weight"][1, 2], rel=1e-5)
