import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nqconvert.training.pruning.variational import (  # noqa: E402
    VariationalDropout,
    VariationalSettings,
    dropout_divergence,
    prune_variational,
)
from nqconvert.training.technique import Run  # noqa: E402

from .conftest import LOSS, InterruptedAfter, Shuffled, network, problem, same  # noqa: E402


def integrated_divergence(log_alpha):
    """From the log-uniform prior up to a constant: E log|1 + sqrt(alpha) e| - log(alpha)/2."""
    edges = np.linspace(-9.0, 9.0, 400_001)
    points = (edges[1:] + edges[:-1]) / 2 + 1e-7
    density = np.exp(-0.5 * points**2)
    values = np.log(np.abs(1 + math.exp(0.5 * log_alpha) * points))
    return float(values @ density / density.sum()) - 0.5 * log_alpha


def test_the_divergence_is_near_the_integral():
    grid = np.linspace(-6.0, 6.0, 25)
    exact = np.array([integrated_divergence(x) for x in grid])
    exact -= integrated_divergence(16.0)
    found = dropout_divergence(torch.tensor(grid)).numpy()
    assert np.abs(found - exact).max() < 0.02


def test_the_noise_has_the_variance_of_sampled_weights():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 3, 3, padding=1, bias=True)
    module = torch.nn.Sequential(layer)
    technique = VariationalDropout(module, ["0.weight"], VariationalSettings(start=-2.0), n_samples=10)
    run = Run(module=module, parameters=dict(module.named_parameters()), optimizer=None)
    inputs = torch.randn(1, 2, 5, 5)
    mean = layer(inputs)
    technique.begin(run, 0)
    with torch.no_grad():
        drawn = torch.stack([module(inputs) for _ in range(4000)])
        kernels = layer.weight + math.exp(-1.0) * torch.randn(4000, *layer.weight.shape)
        sampled = torch.stack([torch.conv2d(inputs, k, layer.bias, padding=1) for k in kernels])
    assert torch.allclose(drawn.mean(0), mean, atol=0.2)
    assert torch.allclose(drawn.var(0), sampled.var(0), rtol=0.2)
    technique.close()
    assert torch.equal(module(inputs), mean)


def options(**more):
    chosen = {"settings": VariationalSettings(noise_lr=20.0), "epochs": 12, "final_epochs": 4, "lr": 0.02}
    return {**chosen, **more}


def test_weights_that_do_not_matter_are_pruned():
    torch.manual_seed(0)
    inputs = torch.randn(1024, 20)
    targets = inputs[:, :2].sum(1, keepdim=True)
    module = torch.nn.Sequential(torch.nn.Linear(20, 1))
    batches = [(x, y) for x, y in zip(inputs.split(64), targets.split(64), strict=True)]

    def loss(outputs, wanted):
        return 20 * torch.nn.functional.mse_loss(outputs, wanted)

    result = prune_variational(module, batches, loss, **options(epochs=40, n_samples=None))
    assert result.masks["0.weight"][0, :2].all() and result.density <= 0.5
    assert torch.equal(module[0].weight[0] != 0, torch.from_numpy(result.masks["0.weight"][0]))
    assert module[0].weight[0, :2].tolist() == pytest.approx([1.0, 1.0], abs=0.1)


@pytest.mark.parametrize("n_batches", [4, 38, 40])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, n_batches):
    whole = network()
    expected = prune_variational(whole, Shuffled(), LOSS, **options(n_samples=96))
    path = tmp_path / "run.ckpt"
    with pytest.raises(KeyboardInterrupt):
        module = network()
        prune_variational(
            module, InterruptedAfter(Shuffled(), n_batches), LOSS, checkpoint=path, **options(n_samples=96)
        )
    assert torch.equal(module.train()(problem()[0]), module.eval()(problem()[0]))  # no noise is left
    fresh = network(seed=3)
    result = prune_variational(fresh, Shuffled(), LOSS, checkpoint=path, **options(n_samples=96))
    assert same(whole.state_dict(), fresh.state_dict()) and result.log.records == expected.log.records


def test_bad_settings_and_layers_are_refused():
    for bad in ({"warm_up": 2.0}, {"strength": -1.0}, {"noise_lr": 0.0}):
        with pytest.raises(ValueError):
            VariationalSettings(**bad)
    module = torch.nn.Sequential(torch.nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        VariationalDropout(module, ["0.weight_ih_l0"], VariationalSettings(), n_samples=4)
    with pytest.raises(ValueError, match="n_samples"):
        VariationalDropout(network(), ["0.weight"], VariationalSettings(), n_samples=0)
