import copy
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nqconvert.training.sharing import mixture as mixture_module  # noqa: E402
from nqconvert.training.sharing.mixture import (  # noqa: E402
    Component,
    Mixture,
    MixtureSettings,
    merged_components,
    mixture_loss,
)
from nqconvert.training.sharing.soft_weight_sharing import (  # noqa: E402
    SharingSettings,
    SoftWeightSharing,
    assigned,
    share_weights_softly,
)
from nqconvert.training.technique import Place, Run  # noqa: E402

from .conftest import LOSS, InterruptedAfter, Shuffled, mean_loss, network, same  # noqa: E402


def parameters(n_components, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(n_components, generator=generator)
    log_precisions = 2 + torch.randn(n_components, generator=generator)
    log_shares = torch.log_softmax(torch.randn(n_components, generator=generator), 0)
    return [value.double().requires_grad_() for value in (means, log_precisions, log_shares)]


def plain_loss(weight, means, log_precisions, log_shares):
    """The whole (weights x components) array at once."""
    distance = weight.reshape(-1, 1) - means
    logs = log_shares + 0.5 * log_precisions - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(logs - 0.5 * log_precisions.exp() * distance**2, 1).sum()


@pytest.mark.parametrize("block", [7, 1 << 14])
def test_the_streamed_loss_and_its_gradients_are_those_of_autograd(monkeypatch, block):
    monkeypatch.setattr(mixture_module, "_BLOCK", block)
    weight = torch.randn(5, 13, generator=torch.Generator().manual_seed(3)).requires_grad_()
    given = [value.detach().float().requires_grad_() for value in parameters(4)]
    loss = mixture_loss(weight, *given)
    loss.backward()
    exact_weight = weight.detach().double().requires_grad_()
    exact = [g.detach().double().requires_grad_() for g in given]
    expected = plain_loss(exact_weight, *exact)
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.allclose(weight.grad.double(), exact_weight.grad, rtol=1e-4, atol=1e-5)
    for found, wanted in zip(given, exact, strict=True):
        assert torch.allclose(found.grad.double(), wanted.grad, rtol=1e-4, atol=1e-4)


def test_far_weights_do_not_overflow():
    weight = torch.tensor([1e4, -1e4, 0.0]).requires_grad_()
    mixture = Mixture(MixtureSettings(components=4), 1.0)
    loss = mixture.loss([weight])
    loss.backward()
    assert math.isfinite(float(loss.detach())) and torch.isfinite(weight.grad).all()
    assert weight.grad[0] > 0 > weight.grad[1]


def test_the_hyperpriors_are_gamma_densities():
    settings = MixtureSettings(components=2, zero_prior=(5.0, 2.0), prior=(3.0, 0.5))
    mixture = Mixture(settings, 1.0)
    empty = float(mixture.loss([]).detach())
    precisions = mixture.log_precisions.detach().double().exp().numpy()
    expected = 0.0
    for precision, (shape, rate) in zip(precisions, [(5.0, 2.0), (3.0, 0.5), (3.0, 0.5)], strict=True):
        expected -= (shape - 1) * math.log(precision) - rate * precision
    assert empty == pytest.approx(expected, rel=1e-5)


def test_equal_components_merge_and_the_nearest_to_zero_becomes_zero():
    given = [
        Component(0.6, 0.01, 9.0),
        Component(0.1, 1.0, 4.0),
        Component(0.1, 1.0, 4.0),
        Component(0.2, -1.0, 4.0),
    ]
    merged = merged_components(given)
    assert merged == [Component(0.6, 0.0, 9.0), Component(0.2, 1.0, 4.0), Component(0.2, -1.0, 4.0)]
    two = merged_components([Component(0.75, 0.5, 1.0), Component(0.25, 0.9, 2.0)], closeness=10.0)
    assert two[0].share == 1.0 and two[0].precision == pytest.approx(1 / (0.75 + 0.125))


def test_weights_belong_to_the_component_of_highest_density():
    rng = np.random.default_rng(0)
    components = [Component(0.9, 0.0, 50.0), Component(0.06, 0.5, 300.0), Component(0.04, -0.4, 200.0)]
    weight = torch.from_numpy(rng.normal(0, 0.4, size=500).astype(np.float32))
    density = np.array([
        [c.share * math.sqrt(c.precision) * math.exp(-c.precision * (w - c.mean) ** 2 / 2)
            for c in components
        ]
        for w in weight.tolist()
    ])  # fmt: skip
    assert np.array_equal(assigned(weight, components).numpy(), density.argmax(1))


def test_weights_become_few_values_and_the_network_still_answers():
    module = network()
    from nqconvert.training import retrain

    retrain(module, Shuffled(), LOSS, epochs=60, lr=0.02)
    before = mean_loss(module)
    settings = SharingSettings(tau=2e-2, mixture=MixtureSettings(components=6, zero_share=0.8))
    shared = copy.deepcopy(module)
    result = share_weights_softly(
        shared, Shuffled(), LOSS, settings=settings, epochs=60, final_epochs=0, lr=5e-3
    )
    module = shared
    values = torch.cat([module[0].weight.detach().reshape(-1), module[3].weight.detach().reshape(-1)])
    means = {component.mean for component in result.components}
    assert values.unique().numel() <= 7
    assert all(any(abs(v - m) < 1e-6 for m in means) for v in values.unique().tolist())
    assert float((values == 0).float().mean()) == pytest.approx(1 - result.density) and result.density < 0.9
    assert mean_loss(module) < before + 0.35


def test_final_epochs_move_shared_values_and_lower_the_loss():
    dense = network()
    settings = SharingSettings(tau=2e-2, mixture=MixtureSettings(components=6, zero_share=0.8))
    made = {}
    for final_epochs in (0, 6):
        module = copy.deepcopy(dense)
        made[final_epochs] = module
        share_weights_softly(
            module, Shuffled(), LOSS, settings=settings, epochs=30, final_epochs=final_epochs, lr=5e-3
        )
    for name in ("0.weight", "3.weight"):
        before, after = (made[n].get_parameter(name).detach().reshape(-1) for n in (0, 6))
        assert torch.equal(before == 0, after == 0) and not torch.equal(before, after)
        for value in before.unique():
            assert after[before == value].unique().numel() == 1
    assert mean_loss(made[6]) < mean_loss(made[0])


@pytest.mark.parametrize("interruptions", [(7,), (17,), (7, 11)])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, interruptions):
    whole = network()
    run = {"epochs": 4, "final_epochs": 2, "lr": 5e-3}
    share_weights_softly(whole, Shuffled(), LOSS, **run)
    path = tmp_path / "run.ckpt"
    fresh = network()
    for batches in interruptions:
        with pytest.raises(KeyboardInterrupt):
            share_weights_softly(
                network(), InterruptedAfter(Shuffled(), batches), LOSS, **run, checkpoint=path, n_samples=96
            )
    share_weights_softly(fresh, Shuffled(), LOSS, **run, checkpoint=path)
    assert same(whole.state_dict(), fresh.state_dict())


def test_a_tensor_that_collapses_is_named_and_spared():
    module = network()
    module[0].weight.data *= 1e-4
    technique = SoftWeightSharing(
        module, ["0.weight", "3.weight"], SharingSettings(warm_up=0.0), n_samples=96
    )
    run = Run(module=module, parameters=dict(module.named_parameters()), optimizer=None)
    gradients = []
    for step in (0, 50):
        technique.before_step(run, Place(stage=0, step=step, fraction=0.5))
        module.zero_grad()
        technique.penalty(run).backward()
        gradients.append((module[0].weight.grad.clone(), module[3].weight.grad.clone()))
    assert technique.collapsed == ("0.weight",)
    assert torch.allclose(gradients[1][0], 0.5 * gradients[0][0]) and torch.equal(
        gradients[1][1], gradients[0][1]
    )


def test_bad_settings_are_refused():
    for bad in ({"tau": -1.0}, {"mean_lr": 0.0}, {"warm_up": 1.5}):
        with pytest.raises(ValueError):
            SharingSettings(**bad)
    for bad in ({"components": 1}, {"zero_share": 1.0}, {"spread": 0.0}, {"deviation": -1.0}):
        with pytest.raises(ValueError):
            MixtureSettings(**bad)
