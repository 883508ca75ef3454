"""Incremental, adaptive, hashed and entropy-penalized quantization of small networks."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import nqformat  # noqa: E402
from nqconvert.quantizers.inq import power_entries  # noqa: E402
from nqconvert.training.quantized.adaptive import (  # noqa: E402
    AdaptiveSettings,
    quantize_adaptively,
    shortest_fractions,
    tolerances,
)
from nqconvert.training.quantized.entropy import (  # noqa: E402
    CodeRate,
    EntropyPenalty,
    RateSettings,
    retrain_for_rate,
)
from nqconvert.training.quantized.inq import (  # noqa: E402
    IncrementalQuantization,
    quantize_incrementally,
)
from nqconvert.training.quantized.straight_through import GridSettings, StraightThrough  # noqa: E402
from nqconvert.training.retraining import retrain  # noqa: E402
from nqconvert.training.sharing.hashed import HashedWeights, save_hashed, train_hashed  # noqa: E402
from nqconvert.training.technique import Place, Run  # noqa: E402

from .conftest import LOSS, InterruptedAfter, Shuffled, mean_loss, network, problem, same  # noqa: E402


@pytest.fixture(scope="module")
def trained():
    module = network()
    retrain(module, Shuffled(), LOSS, epochs=40, lr=0.02)
    return module.state_dict()


def copy_of(trained):
    module = network()
    module.load_state_dict(trained)
    return module


def run_of(module):
    parameters = dict(module.named_parameters())
    return Run(module=module, parameters=parameters, optimizer=torch.optim.SGD(module.parameters(), lr=0.1))


# Incremental quantization


def test_inq_takes_the_largest_weights_first_and_keeps_them(trained):
    module = copy_of(trained)
    module[0].weight.data[0] = 0.0
    technique = IncrementalQuantization(["0.weight"], clusters=8)
    run, before = run_of(module), module[0].weight.detach().clone()
    entries = torch.from_numpy(power_entries(float(before.abs().max()), 8)).float()
    technique.begin(run, 0)
    fixed = technique.state()["fixed"]["0.weight"]
    kept = fixed & (before != 0)
    assert kept.sum() == 45 and fixed.sum() == 51
    assert before.abs()[kept].min() >= before.abs()[~fixed].max()
    nearest = (before[kept][:, None] - entries).abs().argmin(1)
    assert torch.equal(module[0].weight[kept], entries[nearest])
    assert torch.equal(module[0].weight[~fixed], before[~fixed])


def test_inq_ends_with_zero_and_powers_of_two(trained):
    module = copy_of(trained)
    before = mean_loss(module)
    quantize_incrementally(
        module, Shuffled(), LOSS, clusters=8, epochs=6, lr=0.01, optimizer="adamw", weight_decay=0.1
    )
    for layer in (module[0], module[3]):
        values = layer.weight.detach().abs().unique()
        exponents = torch.log2(values[values > 0])
        assert torch.equal(exponents, exponents.round()) and values.numel() <= 5
    assert mean_loss(module) < before + 0.2


@pytest.mark.parametrize("n_batches", [2, 4, 10])
def test_interrupted_inq_resumes_to_the_same_weights(trained, tmp_path, n_batches):
    whole, path = copy_of(trained), tmp_path / "run.ckpt"
    quantize_incrementally(whole, Shuffled(), LOSS, epochs=1)
    with pytest.raises(KeyboardInterrupt):
        loader = InterruptedAfter(Shuffled(), n_batches)
        quantize_incrementally(copy_of(trained), loader, LOSS, epochs=1, checkpoint=path)
    fresh = copy_of(trained)
    quantize_incrementally(fresh, Shuffled(), LOSS, epochs=1, checkpoint=path)
    assert same(whole.state_dict(), fresh.state_dict())


def test_bad_portions_are_refused():
    for portions in ([], [0.5], [0.0, 1.0], [0.75, 0.5, 1.0]):
        with pytest.raises(ValueError, match="portions"):
            IncrementalQuantization(["w"], portions=portions)
    with pytest.raises(ValueError, match="clusters"):
        IncrementalQuantization(["w"], clusters=1)


# Adaptive quantization


def test_tolerances_are_the_optimum_of_the_linear_bound():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(200, generator=generator).abs()
    gradient[:10] = 0.0
    for slack, radius in ((0.5, 0.1), (5.0, 0.1), (1e-3, 0.5), (1e6, 0.2)):
        found = tolerances(gradient, slack, radius).double()
        used = float((gradient.double() * found).sum())
        assert float(found.max()) <= radius * (1 + 1e-6) and used <= slack * (1 + 1e-5)
        low, high = 1e-12, 1e12  # the multiplier by bisection
        for _ in range(200):
            middle = math.sqrt(low * high)
            tried = torch.minimum(1.0 / (middle * gradient.double()), torch.tensor(radius).double())
            low, high = (middle, high) if float((gradient * tried).sum()) > slack else (low, middle)
        wanted = torch.minimum(1.0 / (high * gradient.double()), torch.tensor(radius).double())
        assert torch.allclose(found, wanted, rtol=1e-4)


def test_fractions_are_the_shortest_that_are_near_enough():
    values = torch.rand(300, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tolerance = torch.rand(300, generator=torch.Generator().manual_seed(2)) * 0.1
    made, bits = shortest_fractions(values, tolerance, 12)
    for value, near, got, n in zip(*(t.tolist() for t in (values, tolerance, made, bits)), strict=True):
        fits = [m for m in range(13) if abs(round(value * 2**m) / 2**m - value) <= near]
        assert n == (fits[0] if fits else 12) and got == round(value * 2**n) / 2**n


def test_adaptive_quantization_keeps_to_its_bound(trained):
    module = copy_of(trained)
    loader = [problem()]
    settings = AdaptiveSettings(max_rise=0.05, iterations=20)
    result = quantize_adaptively(module, loader, LOSS, settings=settings)
    assert result.loss == pytest.approx(mean_loss(module), abs=1e-6)
    assert result.loss <= result.loss_before + 0.05 and result.mean_bits < 6
    assert any(record.accepted for record in result.records)
    for name, bits in result.bits.items():
        weight = module.state_dict()[name].numpy()
        scale = 2.0 ** math.ceil(math.log2(float(trained[name].abs().max())))
        assert np.array_equal(weight / scale * 2.0**bits, np.round(weight / scale * 2.0**bits))
    looser = copy_of(trained)
    more = quantize_adaptively(looser, loader, LOSS, settings=AdaptiveSettings(max_rise=0.5))
    assert more.mean_bits < result.mean_bits


def test_adaptive_quantization_rises_to_its_bound_step_by_step(trained):
    settings = AdaptiveSettings(max_rise=0.1, iterations=40)
    result = quantize_adaptively(copy_of(trained), [problem()], LOSS, settings=settings)
    assert result.loss - result.loss_before > 0.05, "the bound is used"
    for record in result.records:
        due = result.loss_before + 0.1 * (record.iteration + 1) / 40
        assert record.accepted == (record.loss <= due)


def test_bad_adaptive_settings_are_refused():
    for bad in (
        {"max_rise": 0.0},
        {"iterations": 0},
        {"max_bits": 20},
        {"radius": 2.0},
        {"least_radius": 0.5},
    ):
        with pytest.raises(ValueError):
            AdaptiveSettings(**bad)


# Hashed weights


def test_the_gradient_of_a_shared_value_is_the_signed_sum_of_its_elements():
    module = network()
    technique = HashedWeights(module, {"0.weight": 10}, seed=7)
    run = run_of(module)
    values = {"0.weight": module[0].weight.detach()}
    technique.effective(values)
    shared = torch.from_numpy(technique.values["0.weight"]).requires_grad_()
    places, signs = technique._places["0.weight"], technique._signs["0.weight"]
    looked = shared[places] * signs
    assert torch.equal(looked.detach(), values["0.weight"])
    outputs = torch.func.functional_call(module, {"0.weight": looked}, problem()[0])
    (expected,) = torch.autograd.grad(LOSS(outputs, problem()[1]), shared)
    module[0].weight.data = values["0.weight"]
    LOSS(module(problem()[0]), problem()[1]).backward()
    technique.after_backward(run)
    assert torch.allclose(technique.groups(0.1)[0]["params"][0].grad, expected, atol=1e-6)
    assert module[0].weight.grad is None


def test_a_hashed_network_learns_and_its_file_gives_the_same_weights(tmp_path):
    module, path = network(), tmp_path / "hashed.nqz"
    result = train_hashed(module, Shuffled(), LOSS, share=0.25, epochs=30, lr=0.02, seed=5)
    assert result.log.records[-1].train_loss < result.log.records[0].train_loss - 0.1
    assert np.unique(np.abs(module[0].weight.detach().numpy())).size <= 24
    n_bytes = save_hashed(module.eval(), result, path, example_inputs=problem()[0][:2])
    assert n_bytes == path.stat().st_size
    stored = nqformat.load_file(path)
    for name in ("0.weight", "3.weight"):
        assert any(np.array_equal(array, module.state_dict()[name].numpy()) for array in stored.values())
    from nqruntime import InferenceSession

    session = InferenceSession(path)
    outputs = session.run(None, {session.get_inputs()[0].name: problem()[0].numpy()})[0]
    with torch.no_grad():
        assert np.allclose(outputs, module(problem()[0]).numpy(), atol=1e-5)


def test_interrupted_hashed_training_resumes_to_the_same_weights(tmp_path):
    whole, path = network(), tmp_path / "run.ckpt"
    train_hashed(whole, Shuffled(), LOSS, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        train_hashed(network(), InterruptedAfter(Shuffled(), 7), LOSS, epochs=4, checkpoint=path)
    fresh = network()
    train_hashed(fresh, Shuffled(), LOSS, epochs=4, checkpoint=path)
    assert same(whole.state_dict(), fresh.state_dict())


def test_bad_buckets_are_refused():
    for buckets in ({"0.weight": 0}, {"0.weight": 97}, {"x": 4}):
        with pytest.raises(ValueError):
            HashedWeights(network(), buckets)
    with pytest.raises(ValueError, match="share"):
        train_hashed(network(), Shuffled(), LOSS, share=0.0)
    with pytest.raises(ValueError, match="precision must be one of float16, float32"):
        train_hashed(network(), Shuffled(), LOSS, precision="int8")


# Entropy-penalized retraining


def test_bits_of_all_numbers_are_their_entropy():
    rng = np.random.default_rng(0)
    integers = torch.from_numpy(np.where(rng.random(20_000) < 0.1, rng.integers(-3, 4, 20_000), 0)).float()
    _, counts = integers.unique(return_counts=True)
    shares = counts.double() / integers.numel()
    entropy = float(-(shares * shares.log2()).sum()) * integers.numel()
    assert float(CodeRate(integers).bits(integers).sum()) == pytest.approx(entropy, rel=5e-3)


def test_the_slope_is_the_derivative_of_the_bits():
    integers = torch.tensor([0.0] * 60 + [1.0] * 9 + [-1.0] * 8 + [2.0] * 3)
    rate = CodeRate(integers)
    points = torch.linspace(-2.9, 2.9, 101) + 0.013
    found = (rate.bits(points + 1e-3) - rate.bits(points - 1e-3)) / 2e-3
    assert torch.allclose(rate.slope(points), found, atol=1e-2)


def test_the_rate_is_scaled_to_the_bytes_of_the_codec():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(200, 100))
    grids = StraightThrough(["0.weight"], settings=GridSettings(coarseness=0.5, first_stage=0))
    penalty = EntropyPenalty(["0.weight"], grids, RateSettings())
    run = run_of(module)
    grids.begin(run, 0)
    penalty.before_step(run, Place(stage=0, step=0, fraction=0.0))
    from nqconvert.quantizers.lossless import lossless_tensor

    values = {"0.weight": module[0].weight.detach()}
    grids.effective(values)
    coded = len(nqformat.save({"w": lossless_tensor(values["0.weight"].numpy())}))
    assert penalty.bits(run) == pytest.approx(8 * coded, rel=0.05)


def test_a_higher_price_gives_fewer_bits(trained):
    sizes = []
    for price in (0.0, 0.2):
        module = copy_of(trained)
        retrain_for_rate(module, Shuffled(), LOSS, settings=RateSettings(penalty=price), epochs=15, lr=0.01)
        weights = {n: p.detach().numpy() for n, p in module.named_parameters()}
        kept = sum(int(np.count_nonzero(w)) for w in weights.values())
        distinct = max(np.unique(w).size for w in weights.values())
        sizes.append((kept, distinct, mean_loss(module)))
    assert sizes[1][0] < sizes[0][0] - 10 and sizes[1][2] < math.log(3)


def test_interrupted_rate_training_resumes_to_the_same_weights(trained, tmp_path):
    options = {"settings": RateSettings(every=2, coded_every=4), "epochs": 4}
    whole, path = copy_of(trained), tmp_path / "run.ckpt"
    retrain_for_rate(whole, Shuffled(), LOSS, **options)
    with pytest.raises(KeyboardInterrupt):
        retrain_for_rate(copy_of(trained), InterruptedAfter(Shuffled(), 7), LOSS, checkpoint=path, **options)
    fresh = copy_of(trained)
    retrain_for_rate(fresh, Shuffled(), LOSS, checkpoint=path, **options)
    assert same(whole.state_dict(), fresh.state_dict())


def test_bad_rates_are_refused():
    for bad in ({"penalty": -1.0}, {"every": 0}, {"coded_every": 0}):
        with pytest.raises(ValueError):
            RateSettings(**bad)
