"""Repairs of quantized networks on unlabelled inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nqconvert import RepairSettings, load_source
from nqconvert.repair.float_network import FloatNetwork, decoded_float
from nqconvert.repair.reencoding import is_free_vector, precision_of, scaled, with_entries, with_values
from nqconvert.repair.stage import repaired_tensors
from nqformat import AffineTensor, CodebookTensor, RawTensor
from nqformat.tensor import Codebook, Scales, Tensor

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

OFF = {"distillation": "none", "batch_norm": False, "bias_correction": False}


def model(*, with_norm: bool = False) -> Any:
    rng = np.random.default_rng(0)
    arrays = {
        "conv": 0.4 * rng.normal(size=(6, 2, 3, 3)),
        "conv_bias": 0.1 * rng.normal(size=6),
        "gain": 1 + 0.2 * rng.normal(size=6),
        "offset": 0.2 * rng.normal(size=6),
        "mean": 0.1 * rng.normal(size=6),
        "variance": 1 + rng.random(6),
        "gemm": 0.2 * rng.normal(size=(20, 96)),
        "gemm_bias": 0.1 * rng.normal(size=20),
        "last": rng.normal(size=(20, 8)),
        "last_bias": 0.1 * rng.normal(size=8),
    }
    norm = helper.make_node("BatchNormalization", ["b", "gain", "offset", "mean", "variance"], ["n"])
    nodes = [
        helper.make_node("Conv", ["x", "conv", "conv_bias"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        *([norm] if with_norm else []),
        helper.make_node("Flatten", ["n" if with_norm else "b"], ["c"]),
        helper.make_node("Gemm", ["c", "gemm", "gemm_bias"], ["d"], transB=1),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "last"], ["f"]),
        helper.make_node("Add", ["f", "last_bias"], ["y"]),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 2, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items() if n in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2, 6, 6)).astype(np.float32)


def network(calibration: Any = None, **keywords: Any) -> FloatNetwork:
    source = load_source(model(**keywords))
    given = inputs(300, 1) if calibration is None else calibration
    return FloatNetwork(source=source, calibration=given, samples=1000, seed=0, progress=lambda line: None)


def rounded(source: Any, step: float = 0.25) -> dict[str, Tensor]:
    """Weights on a coarse grid, matrices of the last layer in a codebook, biases on fine grids."""
    made: dict[str, Tensor] = {}
    for name, array in source.tensors.items():
        if name == "last":
            k = np.rint(array / step).astype(np.int32)
            entries, places = np.unique(k, return_inverse=True)
            values = (entries * step).astype(np.float32)
            made[name] = CodebookTensor(
                indices=places.reshape(array.shape).astype(np.uint8), codebook=Codebook(values=values)
            )
        elif "bias" in name or array.ndim > 1:
            fine = step if array.ndim > 1 else 2.0**-6
            made[name] = AffineTensor(k=np.rint(array / fine).astype(np.int32), step=fine)
        else:
            made[name] = RawTensor.from_array(array)
    return made


def error(tensors: dict[str, Tensor], found: FloatNetwork, n: int = 500) -> float:
    """Squared error of the answers to inputs that nobody has seen."""
    from nqconvert.graphs.torch_graph import TorchGraph

    graph = TorchGraph(found.source.graph or b"")
    feeds = {"x": torch.from_numpy(inputs(n, 9))}
    now = {name: torch.from_numpy(decoded_float(tensor).copy()) for name, tensor in tensors.items()}
    difference = graph.run(feeds, now)["y"] - graph.run(feeds, found.float_tensors())["y"]
    return float(difference.square().mean())


@pytest.mark.parametrize(
    ("switch", "least_gain"),
    [
        ({"bias_correction": True}, 0.97),
        ({"scale_fit": True}, 0.99),
        ({"distillation": "scales", "distillation_epochs": 16}, 0.9),
        ({"distillation": "weights"}, 0.8),
    ],
)
def test_repairs_bring_answers_to_unseen_inputs_nearer(switch: dict[str, Any], least_gain: float) -> None:
    found = network()
    before = rounded(found.source)
    after, notes = repaired_tensors(before, found, RepairSettings(**{**OFF, **switch}))
    assert error(after, found) < least_gain * error(before, found)
    assert len(notes) == 1 and list(after) == list(before)


def test_biases_are_corrected_where_sequential_calibration_does_not() -> None:
    assert not RepairSettings().corrects_biases
    assert RepairSettings(sequential=False).corrects_biases
    assert RepairSettings(bias_correction=True).corrects_biases


def test_scales_leave_integers_and_zeros_alone() -> None:
    found = network()
    before = rounded(found.source)
    wanted = RepairSettings(distillation="scales", distillation_epochs=16)
    after, _ = repaired_tensors(before, found, wanted)
    for name in ("conv", "gemm"):
        np.testing.assert_array_equal(after[name].k, before[name].k)
        assert after[name].step != before[name].step
    assert after["conv_bias"].step == before["conv_bias"].step
    for index in np.unique(before["last"].indices):
        assert np.unique(after["last"].decode()[before["last"].indices == index]).size == 1
    kept = before["last"].decode() == 0
    assert kept.any() and (after["last"].decode()[kept] == 0).all()


def test_weights_move_but_zeros_stay() -> None:
    found = network()
    before = rounded(found.source)
    after, _ = repaired_tensors(before, found, RepairSettings(distillation="weights"))
    moved = after["gemm"].k != before["gemm"].k
    assert moved.any() and not after["gemm"].k[before["gemm"].k == 0].any()


def test_the_same_seed_gives_the_same_tensors_at_any_number_of_threads() -> None:
    found = network()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made, _ = repaired_tensors(rounded(found.source), found, RepairSettings(distillation="weights"))
        results.append(made)
    torch.set_num_threads(1)
    for name, tensor in results[0].items():
        np.testing.assert_array_equal(decoded_float(tensor), decoded_float(results[1][name]))


def test_a_batch_norm_gets_back_the_moments_behind_it() -> None:
    found = network(with_norm=True)
    before = rounded(found.source, 2.0**-5)
    before["conv"] = scaled(before["conv"], 0.7)
    after, notes = repaired_tensors(before, found, RepairSettings(**{**OFF, "batch_norm": True}))
    assert notes == ("1 batch norms re-estimated",)
    assert error(after, found) < 0.7 * error(before, found)
    for name in ("mean", "variance", "conv"):
        np.testing.assert_array_equal(decoded_float(after[name]), decoded_float(before[name]))


def test_a_correction_that_does_not_help_is_undone(monkeypatch: Any) -> None:
    from nqconvert.repair import layer_outputs

    monkeypatch.setattr(layer_outputs, "_divergences", lambda *given: [1.0, 1.5])
    found = network()
    before = rounded(found.source)
    after, notes = repaired_tensors(before, found, RepairSettings(**{**OFF, "bias_correction": True}))
    assert after == before and "undone" in notes[0]


def test_an_exact_network_stays_as_it_is() -> None:
    found = network()
    exact = {name: RawTensor.from_array(array) for name, array in found.source.tensors.items()}
    wanted = RepairSettings(bias_correction=True, scale_fit=True, distillation="weights")
    after, _ = repaired_tensors(exact, found, wanted)
    for name, tensor in after.items():
        np.testing.assert_allclose(decoded_float(tensor), found.source.tensors[name], atol=1e-3)


def test_too_few_inputs_are_said_and_nothing_wanted_is_nothing_done() -> None:
    few = network(inputs(10, 1))
    before = rounded(few.source)
    after, notes = repaired_tensors(before, few, RepairSettings(bias_correction=False))
    assert notes == ("no distillation: 10 calibration inputs are too few",)
    assert all(after[name] is before[name] for name in before)
    assert repaired_tensors(before, few, RepairSettings(**OFF)) == (before, ())


def test_an_operator_without_a_gradient_leaves_the_network_unrepaired() -> None:
    given = model()
    given.graph.node.append(helper.make_node("NonZero", ["y"], ["where"]))
    found = FloatNetwork(
        source=load_source(given), calibration=inputs(40, 1), samples=40, seed=0, progress=lambda line: None
    )
    before = rounded(found.source)
    after, notes = repaired_tensors(before, found, RepairSettings())
    assert after == before and len(notes) == 1 and "NonZero" in notes[0]


def test_a_long_distillation_is_only_done_if_asked_for(monkeypatch: Any) -> None:
    from nqconvert.repair import distillation

    found = network()
    before = rounded(found.source)
    n_multiplications = 300 * (6 * 16 * 18 + 20 * 96 + 20 * 8)
    monkeypatch.setattr(distillation, "_MAX_MULTIPLICATIONS", 3.9 * n_multiplications)
    after, notes = repaired_tensors(before, found, RepairSettings(bias_correction=False))
    assert "would take long" in notes[0] and after == before
    asked = RepairSettings(distillation_epochs=1, bias_correction=False)
    assert "of 1 kept" in repaired_tensors(before, found, asked)[1][0]
    monkeypatch.setattr(distillation, "_MAX_MULTIPLICATIONS", 5.1 * n_multiplications)
    assert "of 5 kept" in repaired_tensors(before, found, RepairSettings())[1][-1]


@pytest.mark.parametrize("wrong", [{"distillation": "labels"}, {"distillation_epochs": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="distillation"):
        RepairSettings(**wrong)


def test_other_values_keep_the_form_of_a_vector() -> None:
    grid = AffineTensor(k=np.int32([1, 2, 3]), step=0.5)
    np.testing.assert_array_equal(with_values(grid, np.array([0.6, -1.2, 9.0])).k, [1, -2, 18])
    half = RawTensor.from_array(np.float32([0.5, 1.25]))
    assert precision_of(with_values(half, np.array([0.1, 0.7])).decode()) is precision_of(half.bits)
    assert not is_free_vector(RawTensor.from_array(np.float32([[1, 2], [3, 4]])))
    assert not is_free_vector(RawTensor.from_array(np.float32([1, np.inf])))
    assert not is_free_vector(RawTensor.from_array(np.int32([1, 2])))


def test_entries_that_become_equal_are_kept_once() -> None:
    tensor = CodebookTensor(indices=np.uint8([0, 1, 2, 1]), codebook=Codebook(values=np.float32([-1, 0, 1])))
    made = with_entries(tensor, np.array([0.5, 0.0, 0.5]))
    np.testing.assert_array_equal(made.decode(), np.float32([0.5, 0, 0.5, 0]))
    assert made.codebook.values.size == 2


def test_tensors_with_scales_are_left_alone() -> None:
    found = network()
    before = rounded(found.source)
    scales = Scales.along_axis(np.full(20, 0.25, np.float32), (20, 96))
    before["gemm"] = AffineTensor(k=before["gemm"].k, step=1.0, scales=scales)
    after, _ = repaired_tensors(before, found, RepairSettings(distillation="weights", scale_fit=True))
    assert after["gemm"] is before["gemm"]
