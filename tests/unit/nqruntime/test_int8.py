"""Layers that round their inputs to bytes, against the same integer arithmetic in NumPy, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import helper

from nqconvert.cli import main
from nqformat import AffineTensor, Codebook, CodebookTensor
from nqformat.kernels import compiled
from nqformat.scales import Scales
from nqruntime import InferenceSession
from nqruntime.constants import ArrayConstant
from nqruntime.kernels.blocks import QUANTIZE_ROWS
from nqruntime.kernels.library import COMPUTE
from nqruntime.packing.areas import address, aligned
from nqruntime.packing.int8_rows import TABLE_FLOATS, pack_int8_rows
from nqruntime.packing.int8_weights import MOST_INPUTS, Int8Weights, exact_step, int8_weights
from nqruntime.symbols import read_matrix

from .conftest import build_model, quantized

F32 = np.float32
LEVELS = np.array([0, -3, 5, 1, -127, 64, 2, 7], dtype=np.float32)


@pytest.fixture(autouse=True)
def int8_wins(monkeypatch):
    """Let every layer that can be int8 be so, whatever is faster."""
    if compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0) is None:
        pytest.skip("no compiled kernels on this machine")
    monkeypatch.setenv("NQFORMAT_KERNELS", "numba")
    monkeypatch.setattr(
        "nqruntime.lowering.measuring._plan_seconds",
        lambda library, append, forms: [0.1 if form.is_int8 else 1.0 for form in forms],
    )
    monkeypatch.setattr("nqruntime.lowering.measuring.recall", lambda *_: {})
    monkeypatch.setattr("nqruntime.lowering.measuring.keep", lambda *_: None)


def of_levels(shape, seed=0):
    """A tensor whose values are multiples of a step."""
    indices = np.random.default_rng(seed).integers(0, LEVELS.size, shape).astype(np.uint8)
    return CodebookTensor(indices=indices, codebook=Codebook(values=F32(0.25) * LEVELS))


def to_bytes(x):
    """Scale, zero point and bytes of all of an array, in float32."""
    low, high = min(F32(0), x.min()), max(F32(0), x.max())
    span = high - low
    inverse = F32(255) / (span if span > 0 else F32(255))
    zero = np.rint(min(-low * inverse, F32(255)))
    return span / F32(255), int(zero), (np.rint(np.clip(x * inverse, -zero, 255 - zero)) + zero).astype(int)


def finished(sums, zero, weight_sums, factors, scale, *addends):
    value = (sums - zero * weight_sums).astype(np.int32).astype(F32) * (factors * scale)
    for addend in addends:
        value += addend
    return value


def product_reference(x, levels, factors, bias):
    rows = []
    for vector in x:
        scale, zero, numbers = to_bytes(vector)
        levels = levels.astype(int)
        rows.append(finished(levels @ numbers, zero, levels.sum(axis=1), factors, scale, bias))
    return np.array(rows, dtype=F32)


def random_levels(shape, seed, *, palette):
    rng = np.random.default_rng(seed)
    entries = rng.integers(-127, 128, 16).astype(np.int8)
    symbols = rng.integers(0, 16, shape).astype(np.uint8)
    levels = entries[symbols] if palette else rng.integers(-127, 128, shape).astype(np.int8)
    factors = rng.random(shape[0], dtype=F32)
    return Int8Weights(
        levels=levels, factors=factors, is_exact=True, palette=(symbols, entries) if palette else None
    )


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (10, 17), (64, 64), (65, 257), (130, 1030)])
def test_products_are_exact_sums_of_integers(shape, palette):
    library = compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0)
    packed = pack_int8_rows(random_levels(shape, 1, palette=palette))
    weights = random_levels(shape, 1, palette=palette)
    rng = np.random.default_rng(2)
    bias = rng.normal(size=shape[0]).astype(F32)
    for n in (1, 2, 3, 4, 5, 6, 7, 13):
        x = (rng.normal(size=(n, shape[1])) * rng.random((n, 1)) + rng.normal(size=(n, 1))).astype(F32)
        x[0] = np.abs(x[0])
        if n > 2:
            x[1], x[2] = 0, -np.abs(x[2])
        source = aligned(x.size, np.float32)
        source[:] = x.reshape(-1)
        numbers = aligned(n * packed.source_pitch, np.uint8)
        table = aligned(n * TABLE_FLOATS, np.float32)
        out = aligned(n * packed.out_size, np.float32)
        added = packed.bias(bias)
        block = packed.quantize_block(
            source=address(source),
            source_pitch=shape[1],
            n_sources=n,
            out=address(numbers),
            table=address(table),
        )
        assert library.run(QUANTIZE_ROWS, address(block)) == 0
        for row, vector in enumerate(x):
            scale, zero, expected = to_bytes(vector)
            np.testing.assert_array_equal(numbers.reshape(n, -1)[row, : shape[1]], expected)
            assert table.reshape(n, -1)[row, 0] == scale
            assert table.view(np.int32).reshape(n, -1)[row, 1] == zero
        block = packed.block(
            source=address(numbers),
            n_sources=n,
            table=address(table),
            out=address(out),
            out_pitch=packed.out_size,
            bias=address(added),
            low=-2.0,
            high=3.0,
        )
        assert library.run(packed.kernel, address(block)) == 0
        expected = product_reference(x, weights.levels, weights.factors, bias).clip(-2, 3)
        np.testing.assert_array_equal(out.reshape(n, -1)[:, : shape[0]], expected)


def product_model(n_in, *nodes):
    made = [helper.make_node("MatMul", ["x", "w"], ["y"]), *nodes]
    return build_model(made, {"x": (np.float32, ["batch", n_in])}, [made[-1].output[0]])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_of_a_session_is_that_of_the_integers(threads, save_model, monkeypatch):
    monkeypatch.setattr("nqruntime.lowering.segment.Segment._gains", lambda *_: True)
    weight = of_levels((200, 150))
    path = save_model(product_model(200), {"w": weight})
    session = InferenceSession(path, precision="int8", threads=threads)
    step = exact_step(weight.codebook.values)
    levels = np.rint(weight.decode().T / step)
    x = np.random.default_rng(5).normal(size=(9, 200)).astype(F32)
    expected = product_reference(x, levels, np.full(150, step, F32), F32(0))
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    assert "int8" in session.explain()[0].kernel and "rounded" not in session.explain()[0].kernel
    np.testing.assert_array_equal(session.run(None, {"x": x[4:5]})[0], expected[4:5])
    np.testing.assert_allclose(expected, x @ weight.decode(), atol=0.02 * np.abs(expected).max())


def test_a_vector_that_is_not_finite_gives_nan_and_leaves_others_alone(save_model):
    session = InferenceSession(save_model(product_model(70), {"w": of_levels((70, 33))}), precision="int8")
    x = np.random.default_rng(5).normal(size=(4, 70)).astype(F32)
    clean = session.run(None, {"x": x})[0]
    for bad in (np.nan, np.inf, -np.inf):
        y = x.copy()
        y[2, 69] = bad
        found = session.run(None, {"x": y})[0]
        assert np.isnan(found[2]).all()
        np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(clean, 2, axis=0))


def conv_reference(x, levels, factors, bias, stride, pad, added=None):
    """As NumPy computes it, an image at a time."""
    n_out, _, kh, kw = levels.shape
    padded_x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = []
    for k, image in enumerate(padded_x):
        scale, zero, numbers = to_bytes(image if levels.shape[2] > 1 else image[:, ::stride, ::stride])
        if levels.shape[2] == 1:
            windows = numbers[:, :, :, None, None]
        else:
            windows = np.lib.stride_tricks.sliding_window_view(numbers, (kh, kw), axis=(1, 2))
            windows = windows[:, ::stride, ::stride]
        sums = np.einsum("chwyx,ocyx->ohw", windows, levels.astype(int))
        weight_sums = levels.astype(int).sum(axis=(1, 2, 3))[:, None, None]
        addends = [bias[:, None, None]] + ([] if added is None else [added[k]])
        out.append(finished(sums, zero, weight_sums, factors[:, None, None], scale, *addends))
    assert n_out == out[0].shape[0]
    return np.array(out, dtype=F32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride"),
    [
        (3, 8, (9, 7), 3, 1),
        (6, 17, (16, 16), 3, 1),
        (5, 9, (10, 12), 3, 2),
        (4, 8, (7, 9), 1, 1),
        (70, 20, (5, 6), 3, 1),
        (9, 3, (8, 6), 1, 2),
        (1, 4, (20, 40), 5, 1),
    ],
)
def test_convolutions_are_exact_sums_of_integers(
    channels, outputs, size, kernel, stride, threads, save_model, monkeypatch
):
    monkeypatch.setattr("nqruntime.lowering.segment.Segment._gains", lambda *_: True)
    weight = of_levels((outputs, channels, kernel, kernel), seed=channels)
    rng = np.random.default_rng(3)
    bias = rng.normal(size=outputs).astype(F32)
    pad = kernel // 2
    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["y"],
        pads=[pad] * 4,
        strides=[stride] * 2,
        kernel_shape=[kernel] * 2,
    )
    model = build_model([node], {"x": (np.float32, ["batch", channels, *size])}, ["y"])
    session = InferenceSession(save_model(model, {"w": weight, "b": bias}), precision="int8", threads=threads)
    x = (rng.normal(size=(3, channels, *size)) + rng.normal(size=(3, 1, 1, 1))).astype(F32)
    step = exact_step(weight.codebook.values)
    levels = np.rint(weight.decode() / step)
    expected = conv_reference(x, levels, np.full(outputs, step, F32), bias, stride, pad)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)
    assert "int8 planes" in session.explain()[0].kernel
    x[1, 0, 0, 0] = np.nan
    found = session.run(None, {"x": x})[0]
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[2], expected[2])


def test_additions_and_limits_join_a_convolution(save_model):
    weight = of_levels((8, 8, 3, 3))
    conv = {"pads": [1] * 4, "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], **conv),
        helper.make_node("Conv", ["x", "w"], ["b"], **conv),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    model = build_model(nodes, {"x": (np.float32, [2, 8, 6, 6])}, ["y"])
    session = InferenceSession(save_model(model, {"w": weight}), precision="int8")
    x = np.random.default_rng(3).normal(size=(2, 8, 6, 6)).astype(F32)
    step = exact_step(weight.codebook.values)
    arguments = (np.rint(weight.decode() / step), np.full(8, step, F32), np.zeros(8, F32), 1, 1)
    one = conv_reference(x, *arguments)
    expected = conv_reference(x, *arguments, added=one.clip(0)).clip(0)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_layers_that_are_not_faster_and_depthwise_ones_stay_exact(save_model, monkeypatch):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[3, 3], pads=[1] * 4, group=8),
        helper.make_node("Conv", ["a", "v"], ["y"], kernel_shape=[1, 1]),
    ]
    model = build_model(nodes, {"x": (np.float32, [1, 8, 6, 6])}, ["y"])
    path = save_model(model, {"w": of_levels((8, 1, 3, 3)), "v": of_levels((8, 8, 1, 1))})
    kernels = [row.kernel for row in InferenceSession(path, precision="int8").explain()]
    assert "int8" not in kernels[0] and "int8" in kernels[1]
    monkeypatch.setattr(
        "nqruntime.lowering.measuring._plan_seconds",
        lambda library, append, forms: [0.95 if form.is_int8 else 1.0 for form in forms],
    )
    path = save_model(model, {"w": of_levels((8, 1, 3, 3)), "v": of_levels((8, 8, 1, 1), seed=9)})
    session = InferenceSession(path, precision="int8")
    assert not any("int8" in row.kernel for row in session.explain())


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0, 0.5, -1.5, 2], 0.5),
        ([0, 0], 1),
        ([0.3], 0.3),
        ([0.1, 12.7], 0.1),
        ([0.1, 12.8], None),
        ([1, np.pi], None),
        ([1e-45, 1], None),
    ],
)
def test_codebooks_of_multiples_lose_nothing(values, step):
    found = exact_step(np.array(values, dtype=F32))
    assert found is None if step is None else abs(found / F32(step) - 1) < 1e-6


def test_affine_weights_are_exact_and_free_ones_are_rounded_near(save_model):
    rng = np.random.default_rng(0)
    numbers = rng.integers(-100, 101, (40, 30)).astype(np.int32)
    affine = AffineTensor(k=numbers, step=float(F32(0.37)))
    session = InferenceSession(save_model(product_model(40), {"w": affine}), precision="int8")
    assert "rounded" not in session.explain()[0].kernel
    free = quantized((40, 30), 1.0, 16)
    session = InferenceSession(save_model(product_model(40), {"w": free}), precision="int8")
    assert "rounded weights" in session.explain()[0].kernel
    floats = rng.normal(size=(30, 40)).astype(F32)
    [made] = int8_weights(read_matrix(ArrayConstant(floats), (30, 40)))
    assert np.abs(made.levels * made.factors[:, None] - floats).max() <= np.abs(floats).max() / 253
    wide = np.ones((1, MOST_INPUTS + 1), dtype=F32)
    assert not int8_weights(read_matrix(ArrayConstant(wide), wide.shape))
    assert not int8_weights(read_matrix(ArrayConstant(np.full((2, 2), np.nan, F32)), (2, 2)))


def test_rows_with_scales_keep_them(save_model):
    weight = of_levels((90, 50))
    scales = np.random.default_rng(1).random(50).astype(F32) + F32(0.5)
    scaled = replace(weight, scales=Scales(values=scales, span=1))
    session = InferenceSession(save_model(product_model(90), {"w": scaled}), precision="int8")
    x = np.random.default_rng(5).normal(size=(3, 90)).astype(F32)
    step = exact_step(weight.codebook.values)
    expected = product_reference(x, np.rint(weight.decode().T / step), scales * step, F32(0))
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], expected)


def test_what_is_lost_is_reported(save_model, capsys):
    nodes = [
        helper.make_node("Relu", ["y"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["z"]),
    ]
    tensors = {"w": quantized((40, 300), 1.0, 16), "v": quantized((300, 10), 1.0, 16)}
    path = save_model(product_model(40, *nodes), tensors)
    session = InferenceSession(path, precision="int8")
    assert session.precision == "int8"
    x = np.random.default_rng(0).normal(size=(100, 40)).astype(F32)
    report = session.precision_report({"x": x})
    exact = InferenceSession(path, engine="native").run(None, {"x": x})[0]
    found = session.run(None, {"x": x})[0]
    [output] = report.outputs
    assert [layer.node for layer in report.layers] == ["#0 y", "#2 z"]
    assert all(0 < layer.relative_error < 0.05 for layer in report.layers)
    assert output.relative_error == report.layers[1].relative_error
    assert output.largest_difference == pytest.approx(np.abs(found - exact).max(), rel=1e-3)
    assert output.equal_argmax == np.mean(found.argmax(axis=1) == exact.argmax(axis=1))
    assert output.n_vectors == 100 and not report.made_up
    assert "2 layers in int8" in str(report) and report.to_json()["outputs"][0]["name"] == "z"
    assert session.precision_report().made_up
    assert main(["run", str(path), "-i", "shape=3,40", "--precision", "int8", "--engine", "native"]) == 0
    assert "2 layers in int8" in capsys.readouterr().out


def test_bad_settings_are_refused(save_model):
    path = save_model(product_model(40), {"w": of_levels((40, 30))})
    with pytest.raises(ValueError, match="precision must be one of float32, int8"):
        InferenceSession(path, precision="int4")
    with pytest.raises(ValueError, match="native engine's"):
        InferenceSession(path, engine="ort", precision="int8")
    with pytest.raises(ValueError, match="only a session of precision"):
        InferenceSession(path).precision_report()
    session = InferenceSession(path, precision="int8")
    with pytest.raises(ValueError, match="no inputs"):
        session.precision_report([])
    with pytest.raises(ValueError, match="no input named"):
        session.precision_report({"a": np.zeros((1, 40), F32)})
