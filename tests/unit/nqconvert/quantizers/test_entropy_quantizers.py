"""Uniform, entropy-constrained and power-of-two quantizers, and what all quantizers keep exactly."""

from __future__ import annotations

import numpy as np
import pytest

from nqconvert.kernels import binned_sums, cheapest_entries, nearest_entries
from nqconvert.kernels.reference import (
    binned_sums_reference,
    cheapest_entries_reference,
    nearest_entries_reference,
)
from nqconvert.quantizers import QuantizerSettings, get_quantizer
from nqconvert.quantizers import ecsq as ecsq_module
from nqconvert.quantizers.ecsq import Cells, iterate_ecsq, quantize_ecsq
from nqconvert.quantizers.inq import quantize_inq
from nqconvert.quantizers.uniform import least_step, quantize_uniform
from nqformat import CodebookTensor, ConversionError, DType


def laplace(shape=(60, 50), seed=0, scale=0.05):
    return np.random.default_rng(seed).laplace(scale=scale, size=shape).astype(np.float32)


def heavy(shape=(60, 50), seed=1):
    return (np.random.default_rng(seed).random(shape) ** 6).astype(np.float32)


def rate_and_error(tensor, values, h=None):
    counts = np.bincount(tensor.indices.reshape(-1))
    shares = counts[counts > 0] / counts.sum()
    weights = np.ones_like(values) if h is None else h
    error = np.average(np.square(tensor.decode().astype(np.float64) - values), weights=weights)
    return float(-(shares * np.log2(shares)).sum()), float(error)


def test_uniform_entries_are_the_means_of_their_cells_and_zero_stays_zero():
    values = laplace()
    exact = QuantizerSettings(step=0.7, codebook_dtype=DType.FLOAT32)
    tensor = quantize_uniform({"w": values}, None, exact)["w"]
    step = 0.7 * np.sqrt(np.mean(np.square(values.astype(np.float64))))
    cells = np.rint(values / step).astype(int)
    for cell in np.unique(cells):
        mean = values[cells == cell].astype(np.float64).mean() if cell else 0.0
        np.testing.assert_allclose(tensor.decode()[cells == cell], mean, rtol=1e-5)


def test_uniform_weights_its_means_with_sensitivities():
    values, h = laplace(), heavy()
    settings = QuantizerSettings(step=0.7, codebook_dtype=DType.FLOAT32)
    tensor = quantize_uniform({"w": values}, {"w": h}, settings)["w"]
    wide, mass = values.astype(np.float64), h.astype(np.float64)
    step = 0.7 * np.sqrt(np.average(np.square(wide), weights=mass))
    cells = np.rint(wide / step).astype(int)
    mean = np.average(wide[cells == 1], weights=mass[cells == 1])
    np.testing.assert_allclose(tensor.decode()[cells == 1], mean, rtol=1e-5)


@pytest.mark.parametrize("clusters", [1, 2, 7, 16, 64])
@pytest.mark.parametrize("pruned", [False, True])
def test_uniform_fills_as_many_cells_as_clusters_allow(clusters, pruned):
    values = laplace()
    if pruned:
        values[np.abs(values) < 0.05] = 0
    tensor = quantize_uniform({"w": values}, None, QuantizerSettings(clusters=clusters))["w"]
    n_entries = np.count_nonzero(tensor.codebook.values) if pruned else tensor.codebook.values.size
    assert max(1, clusters // 2) <= n_entries <= clusters
    assert not pruned or (tensor.decode()[values == 0] == 0).all()


def test_layers_get_steps_of_equal_slope_when_sensitivities_are_given():
    values = laplace()
    weights = {"a": values, "b": values.copy()}
    h = {"a": np.full_like(values, 16.0), "b": np.ones_like(values)}
    made = quantize_uniform(weights, h, QuantizerSettings(step=0.5))
    steps = [np.median(np.diff(t.codebook.values)) for t in made.values()]
    assert steps[1] / steps[0] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("n_zeros", [0, 9000])
def test_the_objective_of_ecsq_never_rises(weighted, penalty, n_zeros):
    values = laplace(shape=(3000,)).astype(np.float64)
    masses = heavy(shape=(3000,)).astype(np.float64) if weighted else np.ones(3000)
    energy = float((masses * values**2).mean())
    cells = Cells(points=values, masses=masses, counts=np.ones(3000))
    found = iterate_ecsq(cells, np.arange(-20, 21) / 50, penalty * energy, n_zeros=n_zeros)
    objectives = np.array(found.objectives)
    assert objectives.size > 1
    assert (np.diff(objectives) <= 1e-12 * objectives[:-1]).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_ecsq_beats_uniform_at_its_own_rate(weighted):
    values, h = laplace(), heavy() if weighted else None
    given = None if h is None else {"w": h}
    for penalty in (1e-3, 1e-2):
        entropy, error = rate_and_error(
            quantize_ecsq({"w": values}, given, QuantizerSettings(rate_penalty=penalty))["w"], values, h
        )
        steps = np.geomspace(0.1, 6.0, 60)
        curve = [
            rate_and_error(quantize_uniform({"w": values}, given, QuantizerSettings(step=s))["w"], values, h)
            for s in steps
        ]
        assert error <= min(e for rate, e in curve if rate <= entropy) * 1.0001


def test_ecsq_on_cells_comes_near_to_single_values(monkeypatch):
    values, h = laplace(shape=(200, 100)), heavy(shape=(200, 100))
    settings = QuantizerSettings(rate_penalty=2e-3)
    single = rate_and_error(quantize_ecsq({"w": values}, {"w": h}, settings)["w"], values, h)
    monkeypatch.setattr(ecsq_module, "_MAX_CELLS", 1 << 14)
    binned = rate_and_error(quantize_ecsq({"w": values}, {"w": h}, settings)["w"], values, h)
    energy = float(np.average(np.square(values.astype(np.float64)), weights=h))
    costs = [error + 2e-3 * energy * rate for rate, error in (single, binned)]
    assert costs[1] == pytest.approx(costs[0], rel=0.02)


@pytest.mark.parametrize("max_cells", [1 << 16, 1 << 12])
def test_ecsq_serves_a_layer_of_small_values_in_a_pool_of_large_ones(monkeypatch, max_cells):
    monkeypatch.setattr(ecsq_module, "_MAX_CELLS", max_cells)
    weights = {"small": laplace(scale=1e-3), "large": laplace(seed=2, scale=1.0)}
    h = {"small": np.full((60, 50), 1e6, np.float32), "large": np.ones((60, 50), np.float32)}
    settings = QuantizerSettings(scope="global", rate_penalty=1e-3, clusters=64)
    made = quantize_ecsq(weights, h, settings)
    for name, values in weights.items():
        noise = np.square(made[name].decode() - values).sum() / np.square(values).sum()
        assert noise < 0.05, name


def test_ecsq_keeps_pruned_zeros_and_drops_entries_as_bits_cost_more():
    values = laplace()
    values[np.abs(values) < 0.05] = 0
    sizes, joined = [], []
    for penalty in (1e-5, 1e-3, 1.0):
        tensor = quantize_ecsq({"w": values}, None, QuantizerSettings(rate_penalty=penalty))["w"]
        assert (tensor.decode()[values == 0] == 0).all()
        joined.append(np.count_nonzero(tensor.decode()[values != 0] == 0))
        sizes.append(tensor.codebook.values.size)
    assert sizes[0] > sizes[1] > sizes[2] >= 2
    assert joined[0] == 0 < joined[2]


def test_inq_entries_are_powers_of_two_and_each_weight_gets_the_nearest():
    values = laplace()
    tensor = quantize_inq({"w": values}, None, QuantizerSettings(clusters=16))["w"]
    entries = tensor.codebook.values
    nonzero = np.abs(entries[entries != 0])
    assert (np.log2(nonzero) % 1 == 0).all() and entries.size <= 17 and 0 in entries
    top = np.floor(np.log2(4 / 3 * np.abs(values).max()))
    assert np.log2(nonzero.max()) == top and np.log2(nonzero.min()) >= top - 7
    nearest = entries[np.abs(values[..., None] - entries).argmin(axis=-1)]
    np.testing.assert_allclose(np.abs(tensor.decode() - values), np.abs(nearest - values), rtol=1e-6)


@pytest.mark.parametrize("method", ["kmeans", "hessian-kmeans", "uniform", "ecsq", "inq"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_binary_and_ternary_tensors_are_kept_exactly(method, scope):
    rng = np.random.default_rng(0)
    weights = {
        "binary": (np.float32(0.37) * rng.choice([-1, 1], size=(30, 30))).astype(np.float32),
        "ternary": (np.float32(1.1) * rng.choice([-1, 0, 1], size=(30, 30))).astype(np.float32),
        "other": laplace(),
    }
    h = {"other": heavy()}
    made = get_quantizer(method)(weights, h, QuantizerSettings(clusters=2, scope=scope))
    for name in ("binary", "ternary"):
        assert isinstance(made[name], CodebookTensor)
        assert np.array_equal(made[name].decode(), weights[name])
    assert made["other"].shape == (60, 50)


@pytest.mark.parametrize("method", ["hessian-kmeans", "uniform", "ecsq"])
def test_a_global_pool_shares_a_codebook_and_fills_missing_sensitivities(method):
    weights = {"a": laplace(seed=1), "b": laplace((10, 30), seed=2), "c": laplace(seed=3)}
    h = {"a": np.full((60, 50), 3.0, np.float32), "b": np.full((10, 30), 3.0, np.float32)}
    settings = QuantizerSettings(clusters=8, scope="global", step=0.5, rate_penalty=1e-2)
    made = get_quantizer(method)(weights, h, settings)
    assert made["a"].codebook is made["b"].codebook is made["c"].codebook
    filled = {**h, "c": np.full((60, 50), 3.0, np.float32)}
    again = get_quantizer(method)(weights, filled, settings)
    assert all(np.array_equal(made[n].decode(), again[n].decode()) for n in weights)


@pytest.mark.parametrize("method", ["uniform", "ecsq"])
@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_bad_sensitivities_and_weights_are_refused(method, bad):
    h = np.ones((60, 50), np.float32)
    h[0, 0] = bad
    with pytest.raises(ConversionError, match="'w'"):
        get_quantizer(method)({"w": laplace()}, {"w": h}, QuantizerSettings())
    with pytest.raises(ConversionError, match="'w'"):
        get_quantizer(method)({"w": laplace() * np.nan}, None, QuantizerSettings())


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("method", ["uniform", "ecsq", "inq"])
def test_other_float_dtypes_and_wide_ranges_work(method, dtype):
    values = laplace().astype(dtype)
    values[0, 0] = 6e4
    tensor = get_quantizer(method)({"w": values}, None, QuantizerSettings(step=1e-3))["w"]
    assert tensor.dtype.label == np.dtype(dtype).name and np.isfinite(tensor.decode()).all()
    tiny = np.full((9, 9), 1e-40, np.float32) * np.arange(81, dtype=np.float32).reshape(9, 9)
    get_quantizer(method)({"w": tiny}, None, QuantizerSettings(clusters=8))


@pytest.mark.parametrize(("name", "value"), [("step", 0.0), ("step", np.inf), ("rate_penalty", -1e-9)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        QuantizerSettings(**{name: value})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_give_what_their_references_give(dtype, monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    rng = np.random.default_rng(5)
    values = np.concatenate([rng.normal(size=500), [0.0, 1e9, -3e8, 0.5, 0.25]]).astype(dtype)
    values.setflags(write=False)
    for entries in ([0.5], [0.0, 1.0], np.arange(-3, 4) / 4, rng.normal(size=300)):
        ordered = np.unique(np.float32(entries))
        assert np.array_equal(nearest_entries(values, ordered), nearest_entries_reference(values, ordered))
    for weights in (None, rng.random(values.size).astype(np.float32)):
        found = binned_sums(values, weights, (0.1, 0.7), (-20.0, 0.05), 900)
        expected = binned_sums_reference(values, weights, (0.1, 0.7), (-20.0, 0.05), 900)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    points, masses, counts = (rng.random(400) for _ in range(3))
    masses[:9] = 0
    for k in (1, 2, 33):
        centres, prices = np.sort(rng.random(k)), rng.random(k) * 0.01
        assert np.array_equal(
            cheapest_entries(points, masses, counts, centres, prices),
            cheapest_entries_reference(points, masses, counts, centres, prices),
        )


def test_a_small_tensor_joins_the_common_pool_unless_it_looks_quantized():
    rng = np.random.default_rng(5)
    large = rng.normal(size=(100, 100)).astype(np.float32)
    few = np.where(rng.random((30, 30)) < 0.1, rng.normal(size=(30, 30)), 0).astype(np.float32)
    quantized = rng.choice(np.float32([-0.3, 0.1, 0.2, 0.7]), size=(30, 30))
    settings = QuantizerSettings(clusters=128, scope="global", rate_penalty=1e-2)
    for quantize in (quantize_uniform, quantize_ecsq):
        made = quantize({"large": large, "few": few, "quantized": quantized}, None, settings)
        assert np.array_equal(made["few"].codebook.values, made["large"].codebook.values)
        assert np.array_equal(made["quantized"].decode(), quantized)


def test_the_least_step_is_that_of_a_full_count():
    rng = np.random.default_rng(6)
    for has_zero in (False, True):
        values = rng.normal(size=3000)
        step = least_step(values, 20, has_zero=has_zero)
        cells = np.unique(np.rint(values / step))
        assert (np.count_nonzero(cells) if has_zero else cells.size) <= 20
        finer = np.unique(np.rint(values / (0.97 * step)))
        assert (np.count_nonzero(finer) if has_zero else finer.size) > 20
