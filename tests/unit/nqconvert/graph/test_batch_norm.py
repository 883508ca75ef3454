from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from nqconvert.graphs.batch_norm import fold_batch_norms

N_CHANNELS = 6


def statistics(rng):
    return {
        "gamma": rng.normal(size=N_CHANNELS).astype(np.float32),
        "beta": rng.normal(size=N_CHANNELS).astype(np.float32),
        "mean": rng.normal(size=N_CHANNELS).astype(np.float32),
        "variance": rng.uniform(0.3, 3, size=N_CHANNELS).astype(np.float32),
    }


def norm_node(source="p", target="y", **attributes):
    names = [source, "gamma", "beta", "mean", "variance"]
    return helper.make_node("BatchNormalization", names, [target], **attributes)


def product(op_type, weight, bias=None, **attributes):
    names = ["x", "w"] if bias is None else ["x", "w", "b"]
    arrays = {"w": weight.astype(np.float32)} | ({} if bias is None else {"b": bias.astype(np.float32)})
    return helper.make_node(op_type, names, ["p"], **attributes), arrays


def cases(rng):
    n = N_CHANNELS
    kernel = (3, 3)
    image = (2, 4, 9, 9)
    matrix = (5, 7)
    return {
        "conv": (image, product("Conv", rng.normal(size=(n, 4, *kernel)))),
        "conv with bias": (image, product("Conv", rng.normal(size=(n, 4, *kernel)), rng.normal(size=n))),
        "grouped conv": (image, product("Conv", rng.normal(size=(n, 2, *kernel)), group=2)),
        "transposed conv": (image, product("ConvTranspose", rng.normal(size=(4, n, *kernel)))),
        "grouped transposed conv": (
            image,
            product("ConvTranspose", rng.normal(size=(4, n // 2, *kernel)), rng.normal(size=n), group=2),
        ),
        "gemm": (matrix, product("Gemm", rng.normal(size=(7, n)))),
        "gemm transB with scaled bias": (
            matrix,
            product("Gemm", rng.normal(size=(n, 7)), rng.normal(size=(1, n)), transB=1, alpha=0.5, beta=2.5),
        ),
        "gemm with scalar bias": (matrix, product("Gemm", rng.normal(size=(7, n)), rng.normal(size=()))),
    }


@pytest.mark.parametrize("case", list(cases(np.random.default_rng(0))))
def test_folding_keeps_the_outputs(case, rng, make_model, run_model):
    shape, (node, arrays) = cases(rng)[case]
    model = make_model([node, norm_node(epsilon=1e-3)], {"x": shape}, ["y"], arrays | statistics(rng))
    feeds = {"x": rng.normal(size=shape).astype(np.float32)}
    expected = run_model(model, feeds)[0]
    assert fold_batch_norms(model) == ("w",)
    assert [n.op_type for n in model.graph.node] == [node.op_type]
    assert {t.name for t in model.graph.initializer} == {"w", "b" if "b" in arrays else "w.bias"}
    actual = run_model(model, feeds)[0]
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_weights_are_computed_in_float64_and_rounded_once(rng, make_model):
    weight = rng.normal(size=(N_CHANNELS, 1, 1, 1))
    node, arrays = product("Conv", weight)
    stats = statistics(rng)
    model = make_model([node, norm_node(epsilon=1e-3)], {"x": (1, 1, 4, 4)}, ["y"], arrays | stats)
    fold_batch_norms(model)
    epsilon = float(np.float32(1e-3))
    exact = [
        float(w) * (float(g) / (float(v) + epsilon) ** 0.5)
        for w, g, v in zip(arrays["w"].ravel(), stats["gamma"], stats["variance"], strict=True)
    ]
    assert numpy_helper.to_array(model.graph.initializer[0]).ravel().tolist() == np.float32(exact).tolist()


def unfolded(model):
    before = model.SerializeToString()
    return fold_batch_norms(model) == () and model.SerializeToString() == before


def test_an_output_with_a_second_consumer_is_not_folded(rng, make_model):
    node, arrays = product("Conv", rng.normal(size=(N_CHANNELS, 4, 3, 3)))
    relu = helper.make_node("Relu", ["p"], ["z"])
    inputs = {"x": (1, 4, 5, 5)}
    assert unfolded(make_model([node, norm_node(), relu], inputs, ["y", "z"], arrays | statistics(rng)))
    assert unfolded(make_model([node, norm_node()], inputs, ["y", "p"], arrays | statistics(rng)))


def test_shared_weights_are_not_folded(rng, make_model):
    node, arrays = product("Conv", rng.normal(size=(N_CHANNELS, 4, 3, 3)))
    second = helper.make_node("Conv", ["x", "w"], ["z"])
    model = make_model([node, second, norm_node()], {"x": (1, 4, 5, 5)}, ["y", "z"], arrays | statistics(rng))
    assert unfolded(model)


def test_training_mode_and_overridable_weights_are_not_folded(rng, make_model):
    node, arrays = product("Conv", rng.normal(size=(N_CHANNELS, 4, 3, 3)))
    inputs = {"x": (1, 4, 5, 5)}
    training = make_model([node, norm_node(training_mode=1)], inputs, ["y"], arrays | statistics(rng))
    assert unfolded(training)
    overridable = inputs | {"w": (N_CHANNELS, 4, 3, 3)}
    assert unfolded(make_model([node, norm_node()], overridable, ["y"], arrays | statistics(rng)))


def test_statistics_shared_by_two_norms_serve_both(rng, make_model, run_model):
    first, arrays = product("Conv", rng.normal(size=(N_CHANNELS, 4, 1, 1)))
    second = helper.make_node("Conv", ["y", "w2"], ["q"])
    arrays["w2"] = rng.normal(size=(N_CHANNELS, N_CHANNELS, 1, 1)).astype(np.float32)
    nodes = [first, norm_node(), second, norm_node("q", "z")]
    model = make_model(nodes, {"x": (1, 4, 3, 3)}, ["z"], arrays | statistics(rng))
    feeds = {"x": rng.normal(size=(1, 4, 3, 3)).astype(np.float32)}
    expected = run_model(model, feeds)[0]
    assert fold_batch_norms(model) == ("w", "w2")
    np.testing.assert_allclose(
        run_model(model, feeds)[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_a_variance_below_zero_is_left_alone(rng, make_model):
    node, arrays = product("Conv", rng.normal(size=(N_CHANNELS, 4, 3, 3)))
    stats = statistics(rng) | {"variance": np.full(N_CHANNELS, -1, np.float32)}
    assert unfolded(make_model([node, norm_node()], {"x": (1, 4, 5, 5)}, ["y"], arrays | stats))
