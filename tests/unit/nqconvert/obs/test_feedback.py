"""Kernels and surgery of single layers, against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nqconvert.graphs.products import Product
from nqconvert.kernels import feed_back, trace_removals
from nqconvert.kernels.feedback_reference import feed_back_reference, trace_removals_reference
from nqconvert.obs.layer import prepare_layer
from nqconvert.obs.statistics import input_blocks, new_hessians
from nqconvert.obs.surgery import quantize_layer, step_at


def correlated_inputs(rng, n_samples, n_inputs):
    return rng.normal(size=(n_samples, 3)) @ rng.normal(size=(3, n_inputs)) + 0.2 * rng.normal(
        size=(n_samples, n_inputs)
    )


def gemm(shape, bias="b"):
    return Product(
        operator="Gemm",
        weight="w",
        activation="x",
        output="y",
        shape=shape,
        feature_axis=1,
        weight_axis=1,
        bias=bias,
    )


def measured_layer(weight, inputs, bias=None, *, rows=False, most=4096):
    product = gemm(weight.shape, None if bias is None else "b")
    hessians = new_hessians([product], weight, rows=rows, most=most)
    wide = inputs if bias is None else np.column_stack([inputs, np.ones(len(inputs))])
    for block, shared in zip(hessians.blocks, (hessians.shared or [[]])[0], strict=False):
        part = wide[:, block.start : block.stop]
        shared += part.T @ part
    for kept, own in zip(hessians.kept, hessians.rows or [], strict=True):
        part = wide[:, np.append(kept, [] if bias is None else [inputs.shape[1]]).astype(int)]
        own += part.T @ part
    hessians.scales += 1.0
    hessians.finish(len(inputs))
    return prepare_layer(hessians, weight, bias)


def output_error(weight, bias, result, inputs):
    made = inputs @ (result.integers * result.step).T + (0 if result.bias is None else result.bias)
    return 0.5 * float(np.square(inputs @ weight.T + (0 if bias is None else bias) - made).sum(axis=1).mean())


@pytest.fixture
def problem():
    rng = np.random.default_rng(3)
    inputs = correlated_inputs(rng, 400, 24)
    return rng.normal(size=(6, 24)), rng.normal(size=6), inputs


def factor_of(hessian):
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(hessian)).T)


def test_kernels_agree_with_their_references():
    pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    inputs = correlated_inputs(rng, 100, 12)
    hessian = inputs.T @ inputs / 100 + 0.1 * np.eye(12)
    values, prices = rng.normal(size=(12, 5)), np.abs(np.arange(-20, 21)) * 0.01
    zeros = rng.random((10, 5)) < 0.2
    scales = rng.random(5) + 0.5
    one, other = values.copy(), values.copy()
    made = feed_back(one, factor_of(hessian), scales, 0.3, prices, zeros)
    expected = feed_back_reference(other, factor_of(hessian), scales, 0.3, prices, zeros)
    np.testing.assert_array_equal(made[0], expected[0])
    np.testing.assert_allclose(made[1], expected[1], atol=1e-10)
    np.testing.assert_allclose(one[10:], other[10:], atol=1e-10)
    assert made[2] == pytest.approx(expected[2]) and (made[0][zeros] == 0).all()
    inverse = np.linalg.inv(hessian)
    traced = trace_removals(values[:, 0].copy(), inverse, 11)
    reference = trace_removals_reference(values[:, 0].copy(), inverse, 11)
    np.testing.assert_array_equal(traced[0], reference[0])
    np.testing.assert_allclose(traced[1], reference[1], rtol=1e-8)


def test_a_trace_removes_what_exact_search_removes():
    rng = np.random.default_rng(5)
    inputs = correlated_inputs(rng, 50, 6)
    hessian, weights = inputs.T @ inputs / 50 + 0.05 * np.eye(6), rng.normal(size=6)
    order, losses = trace_removals(weights, np.linalg.inv(hessian), 5)

    def least_loss(removed):
        left = [i for i in range(6) if i not in removed]
        gone = np.zeros(6)
        gone[list(removed)] = -weights[list(removed)]
        best = np.linalg.solve(hessian[np.ix_(left, left)], -(hessian @ gone)[left])
        gone[left] = best
        return 0.5 * gone @ hessian @ gone

    removed: list[int] = []
    for place in range(5):
        candidates = [i for i in range(5) if i not in removed]
        expected = min(candidates, key=lambda i: least_loss([*removed, i]))
        assert order[place] == expected
        removed.append(expected)
        assert losses[: place + 1].sum() == pytest.approx(least_loss(removed))


def test_the_predicted_loss_is_the_error_of_the_output(problem):
    weight, bias, inputs = problem
    layer = measured_layer(weight, inputs, bias)
    result = quantize_layer(layer, 0.25, 0.0)
    measured = output_error(weight, bias, result, inputs)
    assert measured <= result.loss <= 1.6 * measured  # damping adds to the prediction


@pytest.mark.parametrize("most", [4096, 10])
def test_error_feedback_beats_rounding(problem, most):
    weight, bias, inputs = problem
    fed_back = quantize_layer(measured_layer(weight, inputs, bias, most=most), 0.5, 0.0)
    rounded = np.square(inputs @ (weight - 0.5 * np.rint(weight / 0.5)).T).sum(axis=1).mean() / 2
    assert output_error(weight, bias, fed_back, inputs) < (0.5 if most > 24 else 0.8) * rounded


def test_error_feedback_comes_near_the_best_of_all_integers():
    rng = np.random.default_rng(1)
    inputs = correlated_inputs(rng, 200, 4)
    weight = rng.normal(size=(1, 4))
    result = quantize_layer(measured_layer(weight, inputs), 0.5, 0.0)
    best = min(
        0.5 * float(np.square(inputs @ (weight[0] - 0.5 * np.array(k))).mean())
        for k in itertools.product(range(-6, 7), repeat=4)
    )
    assert output_error(weight, None, result, inputs) <= 3 * best


def test_a_penalty_trades_loss_for_bits(problem):
    weight, bias, inputs = problem
    layer = measured_layer(weight, inputs, bias)
    results = [quantize_layer(layer, 0.125, penalty) for penalty in (0.0, 0.02, 0.2)]
    assert results[0].bits > results[1].bits > results[2].bits
    assert results[0].loss < results[1].loss < results[2].loss


def test_zeros_of_a_pruned_layer_stay_zero(problem):
    weight, bias, inputs = problem
    weight = np.where(np.random.default_rng(0).random(weight.shape) < 0.3, weight, 0.0)
    for rows in (True, False):
        layer = measured_layer(weight, inputs, bias, rows=rows)
        assert bool(layer.rows) == rows
        result = quantize_layer(layer, 0.125, 0.001)
        assert not result.integers[weight == 0].any() and result.integers.any()


def test_rows_of_a_pruned_layer_lose_weights_under_a_penalty(problem):
    weight, bias, inputs = problem
    weight = np.where(np.random.default_rng(0).random(weight.shape) < 0.4, weight, 0.0)
    layer = measured_layer(weight, inputs, bias, rows=True)
    counts = [np.count_nonzero(quantize_layer(layer, 0.125, p).integers) for p in (1e-5, 1e-2, 0.1, 1e3)]
    assert counts[0] > counts[1] > counts[2] > counts[3] == 0
    measured = quantize_layer(layer, 0.125, 1e-2)
    assert measured.loss == pytest.approx(output_error(weight, bias, measured, inputs), rel=0.2)


def test_a_layer_that_never_sees_anything_is_quantized_all_the_same():
    weight = np.random.default_rng(0).normal(size=(3, 5))
    result = quantize_layer(measured_layer(weight, np.zeros((10, 5))), 0.5, 0.0)
    np.testing.assert_array_equal(result.integers, np.rint(weight / 0.5))
    pruned = np.where(weight > 0.5, weight, 0.0)
    assert np.isfinite(quantize_layer(measured_layer(pruned, np.zeros((10, 5)), rows=True), 0.5, 0.1).loss)


def test_wide_layers_have_several_hessians():
    blocks = input_blocks(10_000, 1)
    assert [block.stop - block.start for block in blocks] == [3333, 3333, 3335]
    assert [block.n_free for block in blocks] == [0, 0, 1]


def test_the_step_of_theory_minimises_loss_plus_rate():
    step = step_at(3.0, 0.01)
    cost = [3.0 * s * s / 24 - 0.01 * np.log2(s) for s in (0.95 * step, step, 1.05 * step)]
    assert cost[1] < min(cost[0], cost[2])
