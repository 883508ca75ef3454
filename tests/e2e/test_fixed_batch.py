"""Models that declare how many samples they take: calibration, outputs, comparison."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nqconvert
from nqconvert.network import Network, network_calibration
from nqconvert.sensitivity.calibration import WholeBatches, calibration_batches
from nqconvert.sources import load_source
from nqconvert.sources.batch_axis import declared_samples, opened_source
from nqformat.errors import ConversionError
from nqruntime import InferenceSession

N_IN, N_HIDDEN, N_OUT = 12, 40, 5


def made_model(n_samples: int, *, reshaped: bool = False) -> onnx.ModelProto:
    """Two products; with `reshaped` the number of samples also stands in a constant of the graph."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.standard_normal((N_IN, N_HIDDEN)).astype(np.float32),
        "w2": rng.standard_normal((N_HIDDEN, N_OUT)).astype(np.float32),
        "shape": np.array([n_samples, N_IN], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"])
        if reshaped
        else helper.make_node("Identity", ["x"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n_samples, N_IN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [n_samples, N_OUT])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, N_IN)).astype(np.float32)


def measured(model: onnx.ModelProto, calibration, samples: int = 100):
    source = load_source(model)
    return source, network_calibration(Network(source=source, run=source.run), calibration, samples)


def test_declared_number_of_samples_is_read_from_the_graph() -> None:
    assert declared_samples(load_source(made_model(3))) == 3
    open_model = made_model(3)
    open_model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    assert declared_samples(load_source(open_model)) is None


def test_axis_is_opened_where_that_changes_nothing() -> None:
    source, found = measured(made_model(1), inputs(20))
    assert declared_samples(source) == 1
    assert declared_samples(found.source(source)) is None
    assert isinstance(found.calibration, np.ndarray)
    np.testing.assert_array_equal(found.feeds["x"], inputs(20)[:1])


def test_graph_with_the_number_in_a_reshape_is_given_whole_batches() -> None:
    source, found = measured(made_model(2, reshaped=True), inputs(7))
    assert found.graph == source.graph
    assert [batch.args[0].shape for batch in found.calibration] == [(2, N_IN)] * 3


def test_whole_batches_are_never_divided() -> None:
    batches = WholeBatches([inputs(5), inputs(9)], 4, 100)
    assert [batch.n_samples for batch in batches] == [4, 4, 4]
    sizes = [[b.n_samples for b in calibration_batches(batches, batch_size=1, samples=n)] for n in (1, 9, 99)]
    assert sizes == [[4], [4, 4], [4, 4, 4]]


def test_output_that_mixes_samples_is_not_opened() -> None:
    model = made_model(1)
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["z"], axis=0))
    model.graph.output[0].name = "z"
    source = load_source(model)
    assert opened_source(source, {"x": inputs(2)}, 1) is None


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("n_samples", [1, 4])
@pytest.mark.parametrize(
    "settings", [{"preset": "post-training"}, {"method": "ecsq", "sensitivity": "activation"}]
)
def test_fixed_models_are_calibrated(tmp_path, settings, n_samples: int, reshaped: bool) -> None:
    model = made_model(n_samples, reshaped=reshaped)
    path = tmp_path / "m.nqz"
    report = nqconvert.convert(model, path, calibration=inputs(48), **settings)
    assert report.outputs is not None
    assert any("calibration input" in note for note in report.notes)
    x = inputs(48)[:n_samples]
    with InferenceSession(path) as session:
        got = session.run(None, {"x": x})[0]
    expected = load_source(model).run({"x": x})[0]
    assert np.linalg.norm(got - expected) < 0.2 * np.linalg.norm(expected)


def test_fewer_samples_than_the_model_takes_is_an_error(tmp_path) -> None:
    with pytest.raises(ConversionError, match="takes 8 samples at once"):
        nqconvert.convert(
            made_model(8, reshaped=True), tmp_path / "m.nqz", preset="post-training", calibration=inputs(3)
        )
    assert not (tmp_path / "m.nqz").exists()


def test_methods_are_compared_on_a_fixed_model() -> None:
    x = inputs(20)
    labels = load_source(made_model(20)).run({"x": x})[0].argmax(-1)
    found = nqconvert.compare(
        made_model(1), methods=["kmeans"], targets=["4bits"], test=(x, labels), baselines=False
    )
    assert found.rows[0].accuracy == 1.0
    assert found.rows[1].accuracy > 0.5
